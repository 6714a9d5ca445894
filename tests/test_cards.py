"""Committed cards are what their results files give."""

import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/results.json"))


def test_there_is_a_card():
    assert CARDS


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_a_card_is_generated_from_its_results(folder):
    code = (
        "import sys; sys.path.insert(0, 'examples/autoformer'); from pathlib import Path; from card import render; "
        "sys.stdout.write(render(Path(sys.argv[1])))"
    )
    printed = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == (folder / "README.md").read_text()
