"""The Autoformer's card is what its results file gives; tests/examples/test_cards.py has the others."""

import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def test_the_autoformers_card_is_generated_from_its_results():
    folder = ROOT / "model_cards" / "autoformer-ettm2"
    code = (
        "import sys; sys.path.insert(0, 'examples/autoformer'); from pathlib import Path; from card import render; "
        "sys.stdout.write(render(Path(sys.argv[1])))"
    )
    printed = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == (folder / "README.md").read_text()
