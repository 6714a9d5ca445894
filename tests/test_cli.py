"""The command `oialr`."""

import io
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BertForSequenceClassification, ResNetConfig, ResNetModel

import oialr_peft
from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning, UpdateReport, rank_report
from oialr_peft.cli import main
from oialr_peft.training.trace import Trace
from tests.conftest import tiny_bert, tiny_llama


ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    tiny_llama().config.save_pretrained(tmp_path)
    return tmp_path


def test_the_entry_point_is_this_command():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'oialr = "{main.__module__}:{main.__name__}"\n' in project
    name = re.search(r'general_plugins"\]\noialr = "oialr_peft\.(.+):register"', project)[1]
    plugin = ROOT / "oialr_peft" / f"{name.replace('.', '/')}.py"  # vLLM's; it cannot be imported here
    assert "def register() -> None:" in plugin.read_text()


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


RESNET: dict = {"embedding_size": 16, "hidden_sizes": [16, 16], "depths": [3, 3], "layer_type": "basic"}


@pytest.mark.parametrize(
    ("make", "embeddings"),
    [
        (lambda: tiny_llama().model, False),
        (lambda: tiny_llama().model, True),
        (lambda: ResNetModel(ResNetConfig(**RESNET)), False),  # whose file holds running statistics
    ],
)
def test_inspect_tells_the_least_size_that_can_be_asked_for(make, embeddings, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    make().config.save_pretrained(tmp_path)
    main(["inspect", str(tmp_path), *(["--embeddings"] if embeddings else [])])
    least = float(re.search(r"can ask\s+for is\s+([0-9.]+[0-9])", capsys.readouterr().out)[1])

    def start(share: float) -> None:
        config = OIALRConfig(target_size=share, embeddings=embeddings, delay=1)
        model = get_peft_model(make(), config)
        OIALRUpdater(model, torch.optim.AdamW(model.parameters()), total_steps=20)

    start(least)
    with pytest.raises(ValueError, match="below the floor"):
        start(least - 0.001)


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


@pytest.fixture
def adapter(tmp_path):
    """The folder of a cut adapter, whose base model lies in another one."""
    torch.manual_seed(0)
    tiny_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, OIALRConfig(task_type="CAUSAL_LM", r=0.3, init_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


@pytest.mark.parametrize("verb", ["compress", "merge"])
def test_an_adapter_becomes_a_model(verb, adapter, tmp_path, capsys):
    folder, model = adapter
    main([verb, str(folder), str(tmp_path / "out")])
    assert f"Written: {tmp_path / 'out'}" in capsys.readouterr().out
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits, atol=1e-5, rtol=1e-4)
    smaller = sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in tiny_llama().parameters())
    assert smaller == (verb == "compress")


@pytest.mark.parametrize("verb", ["compress", "merge"])
def test_a_tokenizer_is_neither_made_up_nor_lost(verb, tmp_path):
    from tests.neighbours.test_libraries import tokenizer

    def ids(folder) -> list[int]:
        return AutoTokenizer.from_pretrained(folder)("the film is good")["input_ids"]

    tiny_bert().save_pretrained(tmp_path / "base")  # of a kind for which transformers 5 makes up an empty one
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    folder = tmp_path / "adapter"
    get_peft_model(base, OIALRConfig(task_type="SEQ_CLS", r=4)).save_pretrained(folder)
    with pytest.warns(OIALRWarning, match="new' has no tokenizer or processor"):
        main([verb, str(folder), str(tmp_path / "new")])
    assert not list((tmp_path / "new").glob("tokenizer*"))
    tokenizer().save_pretrained(tmp_path / "full")
    before = ids(tmp_path / "full")
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        main([verb, str(folder), str(tmp_path / "full")])  # what lies there stays
        tokenizer().save_pretrained(tmp_path / "base")
        main([verb, str(folder), str(tmp_path / "new")])
    assert ids(tmp_path / "full") == ids(tmp_path / "new") == before


def test_a_merged_model_takes_the_place_of_a_compressed_one_and_of_its_card(adapter, tmp_path):
    folder, model = adapter
    out = tmp_path / "out"
    main(["compress", str(folder), str(out)])
    assert "two small factors" in (out / "README.md").read_text()
    main(["merge", str(folder), str(out)])
    assert "two small factors" not in (out / "README.md").read_text()
    tokens = torch.arange(12)[None]
    again = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits, atol=1e-5, rtol=1e-4)
    main(["compress", str(folder), str(out)])
    assert "two small factors" in (out / "README.md").read_text()


def test_a_figure_without_matplotlib_says_what_to_install(tmp_path, capsys, monkeypatch):
    def absent(parsed):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr("oialr_peft.cli._plot", absent)
    with pytest.raises(SystemExit, match="2"):
        main(["plot", str(tmp_path), str(tmp_path / "ranks.png")])
    assert "`pip install matplotlib`" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["SEQ_CLS", None])
@pytest.mark.parametrize("verb", ["compress", "merge"])
def test_a_classifier_of_other_labels_than_its_base_becomes_a_model(verb, task, tmp_path):
    config = tiny_bert().config
    config.num_labels = 5
    BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True
    )
    settings = {"task_type": task} if task else {"modules_to_save": ["classifier"]}
    model = get_peft_model(model, OIALRConfig(r=0.3, init_weights=False, **settings))
    model.save_pretrained(tmp_path / "adapter")
    main([verb, str(tmp_path / "adapter"), str(tmp_path / "out")])
    again = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    tokens = torch.arange(6)[None]
    torch.testing.assert_close(again(tokens).logits, model.eval()(tokens).logits, atol=1e-5, rtol=1e-4)
    other = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="load the base model with `num_labels=3`"):
        PeftModel.from_pretrained(other, tmp_path / "adapter")


@pytest.mark.parametrize("verb", ["compress", "merge"])
def test_a_folder_that_has_no_adapter_is_told_apart(verb, adapter, tmp_path, capsys):
    for place, words in (("base", "holds a whole model, which may be"), (".", "a `checkpoint-N` of the Trainer's")):
        with pytest.raises(SystemExit, match="2"):
            main([verb, str(tmp_path / place), str(tmp_path / "out")])
        assert words in capsys.readouterr().err


def test_inspect_of_an_adapter_names_its_base(adapter, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(adapter[0])])
    assert f"Give its base model: {tmp_path / 'base'}" in capsys.readouterr().err


def test_plot_takes_the_folder_of_a_trace(tmp_path, capsys):
    report = UpdateReport(3, 1, False, 0.1, ranks={"a": 8}, full_ranks={"a": 16})
    Trace(tmp_path / "trace.jsonl", new=True).append(report)
    main(["plot", str(tmp_path), str(tmp_path / "ranks.png")])
    assert (tmp_path / "ranks.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="2"):
        main(["plot", str(tmp_path / "nowhere"), str(tmp_path / "ranks.png")])
    assert "There is no run at" in capsys.readouterr().err


def test_a_card_is_written_anew_and_keeps_what_others_wrote(adapter):
    folder, _ = adapter
    card = folder / "README.md"
    written = card.read_text()
    card.write_text(f"{written}\nMine.\n")
    main(["card", str(folder)])
    assert card.read_text() == f"{written}\nMine.\n"


def test_an_adapter_of_another_method_is_named(tmp_path, capsys):
    get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["compress", str(tmp_path), str(tmp_path / "out")])
    assert "an adapter of the method PeftType.LORA, not of OIALR" in capsys.readouterr().err


def test_an_adapter_without_a_base_is_refused_with_the_way_out(tmp_path, capsys):
    get_peft_model(tiny_llama(), OIALRConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["merge", str(tmp_path), str(tmp_path / "out")])
    assert "does not say what its base model is. Load the model in Python" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["compress", "merge"])
@pytest.mark.parametrize("place", ["adapter", "base", "README.md"])
def test_a_model_is_not_written_over_what_it_is_made_from_nor_over_a_file(verb, place, adapter, tmp_path, capsys):
    folder, _ = adapter
    output = folder / place if place == "README.md" else tmp_path / place
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit, match="2"):
        main([verb, str(folder), str(output)])
    words = "is a file" if place == "README.md" else "take the place of what it is made from"
    assert words in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("verb", ["compress", "merge"])
def test_a_model_is_not_written_beside_another_adapter(verb, adapter, tmp_path, capsys):
    """transformers would load that one in the place of a merged model, and compress would remove it."""
    folder, model = adapter
    model.save_pretrained(tmp_path / "other")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit, match="2"):
        main([verb, str(folder), str(tmp_path / "other")])
    assert "has an adapter, which would be lost beside the new model" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("damaged", ['{"peft_type": "OIALR", "ranks": []}', '{"peft_type": "OIALR", "r": "x"}', "[1]"])
def test_a_damaged_config_ends_with_words(damaged, tmp_path, capsys):
    (folder := tmp_path / "adapter").mkdir()
    (folder / "adapter_config.json").write_text(damaged)
    for command in (["compress", str(folder), str(tmp_path / "out")], ["inspect", str(folder)]):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        assert str(folder) in capsys.readouterr().err


def test_a_card_that_is_not_written_is_no_success(adapter, capsys):
    folder, _ = adapter
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    with pytest.warns(OIALRWarning, match="left as it is"), pytest.raises(SystemExit, match="2"):
        main(["card", str(folder)])
    out = capsys.readouterr()
    assert "was not written" in out.err
    assert "Written" not in out.out


def test_a_base_that_is_not_where_the_config_says_is_named(adapter, tmp_path, capsys, monkeypatch):
    folder, _ = adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base model"}))
    with pytest.raises(SystemExit, match="2"):
        main(["merge", str(folder), str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "'base model', which the config of" in said
    assert "A relative path counts from the folder in which the command runs" in said


def test_inspect_says_that_a_model_is_compressed_already(adapter, tmp_path, capsys):
    folder, _ = adapter
    main(["compress", str(folder), str(tmp_path / "small")])
    main(["inspect", str(tmp_path / "small")])
    assert "This model is compressed already" in capsys.readouterr().out


def test_a_terminal_of_few_letters_is_no_reason_to_fail(adapter, tmp_path, monkeypatch):
    folder, model = adapter
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    main(["merge", str(folder), str(tmp_path / "größer")])
    print(rank_report(model))
    terminal.flush()
    said = terminal.buffer.getvalue().decode("ascii")
    assert "Written: " in said
    assert "OIALR ranks" in said


@pytest.mark.parametrize("verb", ["compress", "merge"])
def test_a_folder_without_a_name_is_not_the_current_one(verb, adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        main([verb, str(adapter[0]), ""])
    assert "the folder has no name" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_base_that_is_cut_off_ends_with_words(adapter, capsys, tmp_path):
    base = Path(json.loads((adapter[0] / "adapter_config.json").read_text())["base_model_name_or_path"])
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SystemExit, match="2"):
            main(["compress", str(adapter[0]), str(tmp_path / "new")])
    finally:
        weights.write_bytes(whole)
    assert "oialr: " in capsys.readouterr().err
