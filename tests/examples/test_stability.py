"""examples/stability: a run leaves its results and figure, and the card is what the results give."""

import json

import pytest

from tests.helpers.examples import ROOT, python


FOLDER = ROOT / "examples" / "stability"
CARD = ROOT / "model_cards" / "stability"


def test_the_card_is_what_the_results_give() -> None:
    code = "import sys, pathlib, card; sys.stdout.write(card.render(pathlib.Path(sys.argv[1])))"
    assert python(FOLDER, "-c", code, CARD) == (CARD / "README.md").read_text()
    assert all((folder / "stability.png").exists() for folder in CARD.iterdir() if folder.is_dir())


@pytest.mark.slow
def test_a_run_leaves_results_and_figure(tmp_path) -> None:
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("to be or not to be, that is the question " * 50)
    out = tmp_path / "out"
    python(
        FOLDER,
        "train.py",
        "--data",
        tmp_path,
        "--task",
        "gpt",
        "--steps",
        6,
        "--every",
        2,
        "--batch",
        2,
        "--output",
        out,
    )
    found = json.loads((out / "results.json").read_text())
    assert [point["step"] for point in found["points"]] == [2, 4, 6]
    assert found["hardware"]
    assert (out / "stability.png").stat().st_size > 5000
