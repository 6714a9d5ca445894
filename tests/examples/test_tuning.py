"""examples/tuning: a search on disk goes on, its comparison is written, and the README is what the results give."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "tuning"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def python(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    run = subprocess.run(command, cwd=FOLDER, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_readme_is_what_the_results_give() -> None:
    assert python("-c", "import sys, table; sys.stdout.write(table.render())") == (FOLDER / "README.md").read_text()


@pytest.mark.slow
def test_a_search_goes_on_and_is_compared(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    text, out = tmp_path / "input.txt", tmp_path / "out"
    text.write_text("".join(random.Random(0).choices("abcdefgh ", k=200_000)))
    for trials in (1, 3):
        python("run.py", "--text", text, "--trials", trials, "--steps", 20, "--seeds", 2, "--output", out)
        found = json.loads((out / "results.json").read_text())
        assert sum(found["trials"].values()) == trials
    assert len(found["tuned"]["test"]) == len(found["default"]["validation"]) == 2
    assert found["hardware"]
