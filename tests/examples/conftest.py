"""Puts the example's folder on the import path, as running `python examples/autoformer/run.py` does."""

import os
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "autoformer"))


@pytest.fixture
def ett_file() -> Path:
    """The full ETTm2 file; the folder is `OIALR_DATA` or `shared/data/ETT-small` beside the repository."""
    folder = Path(os.environ.get("OIALR_DATA", ROOT.parent / "shared" / "data" / "ETT-small"))
    file = folder / "ETTm2.csv.gz"
    if not file.is_file():
        pytest.skip("not run: data absent")
    return file
