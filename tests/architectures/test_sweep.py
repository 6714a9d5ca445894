"""Every architecture: injected by default, trained across updates, saved both ways, reloaded in a fresh process."""

import json
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest

from .table import QUICK, ROWS, SLOW
from .walk import outbound


NAMED = "Whisper MobileNetV1 MobileNetV2 Falcon Siglip Albert Mixtral Qwen2Moe VideoMAE".split()


def test_the_sweep_is_as_wide_as_promised():
    assert len({*QUICK, *SLOW}) == len(QUICK) + len(SLOW) >= 150
    assert len([name for name in QUICK if "refused" not in ROWS.get(name, {})]) >= 60
    assert set(ROWS) <= {*QUICK, *SLOW}
    assert all(any(name.startswith(start) for name in QUICK) for start in NAMED)


def failures(names: list[str], folder: Path) -> dict[str, str]:
    """What goes wrong with these models, by name."""
    failed = {name: error for name in names if (error := saved_or_error(name, folder / name))}
    saved = [name for name in names if (folder / name / "answers.pt").exists()]
    command = [sys.executable, "-W", "ignore", "-m", "tests.architectures.walk", str(folder), *saved]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert ended.returncode == 0, ended.stderr
    errors = json.loads(ended.stdout.splitlines()[-1])
    assert list(errors) == saved
    refused = [name for name in names if "refused" in ROWS.get(name, {})]
    assert {*saved, *refused, *failed} == {*names}
    return failed | {name: error for name, error in errors.items() if error}


def saved_or_error(name: str, folder: Path) -> str | None:
    folder.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outbound(name, folder)
    except Exception:
        return traceback.format_exc()


# A fresh process costs ten seconds, so many models share one.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(3))
def test_they_train_save_and_answer_the_same_in_a_fresh_process(part, tmp_path):
    failed = failures(QUICK[part::3], tmp_path)
    assert not failed, "\n".join(failed.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(4))
def test_the_others_do_so_too(part, tmp_path):
    failed = failures(SLOW[part::4], tmp_path)
    assert not failed, "\n".join(failed.values())
