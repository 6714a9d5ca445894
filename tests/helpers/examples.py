"""Running what an example's folder holds, as a user does from within it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


def data_with(*names: str) -> Path:
    """The folder of the real data; the test is skipped where one of these is not there."""
    if not all((DATA / name).exists() for name in names):
        pytest.skip("not run: data absent")
    return DATA


def python(folder: Path, *arguments: object) -> str:
    """What `python ARGUMENTS` prints in a folder, with the package of this tree; it must end well."""
    ended = _ended(folder, arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def refused(folder: Path, *arguments: object) -> str:
    """What `python ARGUMENTS` says on standard error; it must not end well."""
    ended = _ended(folder, arguments)
    assert ended.returncode != 0, ended.stdout + ended.stderr
    return ended.stderr


def _ended(folder: Path, arguments: tuple[object, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
