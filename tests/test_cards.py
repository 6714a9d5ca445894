"""The Autoformer's card is what its results file gives; tests/examples/test_cards.py has the others."""

import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("model_cards", "examples", "docs", "upstream")


def test_what_is_shown_names_no_folder_of_the_machine_that_it_was_made_on():
    files = [
        file for name in SHOWN for ending in ("json", "md", "jinja") for file in (ROOT / name).rglob(f"*.{ending}")
    ]
    assert len(files) > 50
    named = [file for file in files if re.search(r"[\s\"'=](/work|/home|/root|/tmp|/Users)/", file.read_text())]
    assert not named


def test_the_autoformers_card_is_generated_from_its_results():
    folder = ROOT / "model_cards" / "autoformer-ettm2"
    code = (
        "import sys; sys.path.insert(0, 'examples/autoformer'); from pathlib import Path; from card import render; "
        "sys.stdout.write(render(Path(sys.argv[1])))"
    )
    printed = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == (folder / "README.md").read_text()
