"""model_cards: every card and the index are what the results give."""

import pytest

from tests.helpers.examples import ROOT, python


CARDS = ROOT / "model_cards"
FOLDERS = {"patchtst": "forecast", "patchtsmixer": "forecast"}
FOLDERS |= dict.fromkeys(("minivit-cifar10", "resnet-cifar10", "resnet-wide-cifar10"), "vision")


@pytest.mark.parametrize(("card", "example"), FOLDERS.items())
def test_a_card_is_what_the_results_give(card, example):
    folder = CARDS / card
    if not (folder / "README.md").is_file():
        pytest.skip("not run yet")
    code = f"import sys, pathlib, {example}_card as card; sys.stdout.write(card.render(pathlib.Path(sys.argv[1])))"
    assert python(ROOT / "examples" / example, "-c", code, folder) == (folder / "README.md").read_text()
    assert list(folder.glob("*.png"))


def test_the_index_is_what_the_results_give():
    code = "import sys, index; sys.stdout.write(index.render())"
    assert python(CARDS, "-c", code) == (CARDS / "README.md").read_text()


def test_the_index_names_every_card():
    index = (CARDS / "README.md").read_text()
    assert all(f"({folder.name}/README.md)" in index for folder in CARDS.iterdir() if (folder / "README.md").exists())
