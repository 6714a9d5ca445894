"""The README's code runs as it stands, but for the name of the base model."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from oialr_peft.cli import main
from tests import quick_start
from tests.test_import_rules import LEVELS, PACKAGE


ROOT = Path(__file__).resolve().parents[1]


def test_the_quick_start_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = quick_start.run(tmp_path)
    assert len([line for line in names["code"].splitlines() if line.strip()]) <= 12
    assert names["trainer"].state.global_step == 24
    dense = names["model"].merge_and_unload()
    small = AutoModelForSequenceClassification.from_pretrained("small")
    assert small.num_parameters() <= 0.5 * dense.num_parameters()
    main(["report", "out"])
    assert (tmp_path / "out" / "report.html").exists()
    (answer,) = quick_start.use(names["use"])
    ids = torch.tensor([names["tokenizer"](quick_start.TEXT)["input_ids"]])
    assert answer["score"] == pytest.approx(dense.eval()(ids).logits.softmax(-1).max().item(), abs=1e-5)


def test_the_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())
    assert {"demo", "test"} <= set(commands)
    assert all(f"\n{command}:" in makefile for command in commands)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")], ids=str
)
def test_links_point_to_files(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_tree_is_that_of_the_package():
    levels = {name: number for name, number in LEVELS.items() if (PACKAGE / name).is_dir()}
    tree = re.search(r"oialr_peft/\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)[1]
    shown = re.findall(r"^  (.+?)\s+(\d+)  ?", tree, flags=re.MULTILINE)
    named = {name.rstrip("/"): int(level) for names, level in shown for name in names.split()}
    assert {name: named.get(name) for name in levels} == levels
    assert all(LEVELS[name.removesuffix(".py")] == level for name, level in named.items())
