"""The command `oialr`."""

import json
from pathlib import Path

import pytest

import oialr_peft
from oialr_peft.cli import main
from tests.conftest import tiny_llama


ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    tiny_llama().config.save_pretrained(tmp_path)
    return tmp_path


def test_the_entry_point_is_this_command():
    assert f'oialr = "{main.__module__}:{main.__name__}"\n' in (ROOT / "pyproject.toml").read_text()


def test_plan_prints_tables_and_writes_json(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    file = folder / "plan.json"
    main(
        ["plan", "--model", str(folder), "--processes", "4", "--rank", "0.5", "--svd-gflops", "3", "--json", str(file)]
    )
    printed = " ".join(capsys.readouterr().out.split())  # a title may wrap
    for expected in ("14 layers on 4 processes", "update at 50%", "dense DDP", "Memory per process"):
        assert expected in printed
    plan = json.loads(file.read_text())
    assert plan["processes"] == len(plan["update"]["svd_flops"]) == 4
    assert plan["svd_gflops"] == 3
    assert plan["ring_factor"] == 1.5
    memory = plan["memory"]
    assert memory.pop("total") == sum(memory.values())


def test_inspect_says_what_a_cut_would_save(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    main(["inspect", str(folder)])
    printed = capsys.readouterr().out
    rows = {cells[0]: cells[1:] for line in printed.splitlines() if len(cells := line.strip(" │┃").split()) > 3}
    assert rows["gate_proj"][:4] == ["│", "2", "│", "32x16"]
    # Two layers of 32 x 16: 4 kB dense, 4 (32 + 16) 2 x 2 at rank 4.
    assert [cell for cell in rows["gate_proj"] if cell != "│"][2:] == "4.1 kB 19% 3.07 kB 1.54 kB 768 B".split()
    model = tiny_llama().model  # its config names no class
    dense = sum(p.numel() for p in model.parameters())
    ranks = {name: m.weight for name, m in model.named_modules() if name.endswith("proj")}
    small = dense - sum(w.numel() - min(w.numel(), min(w.shape) // 4 * sum(w.shape)) for w in ranks.values())
    assert f"{small / dense:.0%} of dense" in printed


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"oialr_peft {oialr_peft.__version__}\n"


def test_without_a_speed_one_is_measured(folder, capsys):
    main(["plan", "--model", str(folder), "--processes", "1", "--from-scratch"])
    assert "Factorisation: shared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--model", "nowhere/at-all", "--processes", "2"], "No transformers config at 'nowhere/at-all'"),
        (["plan", "--model", "{folder}", "--processes", "0"], "`processes` must be at least 1; got 0"),
        (["plan", "--model", "{folder}", "--processes", "two"], "invalid int value: 'two'"),
        (["plan", "--model", "{folder}"], "--processes"),
        ([], "COMMAND"),
    ],
)
def test_wrong_arguments_end_with_words_and_status_2(arguments, message, folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main([argument.format(folder=folder) for argument in arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
