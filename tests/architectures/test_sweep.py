"""Every architecture: injected by default, trained across updates, saved both ways, reloaded in a fresh process."""

import json
import os
import subprocess
import sys
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("architectures")


def train_and_save(name: str, folder: Path) -> None:
    (folder / name).mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outbound(name, folder / name)


def reload_all(names: list[str], folder: Path) -> None:
    saved = [name for name in names if (folder / name / "answers.pt").exists()]
    command = [sys.executable, "-W", "ignore", "-m", "tests.architectures.walk", str(folder), *saved]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert ended.returncode == 0, ended.stderr
    errors = json.loads(ended.stdout.splitlines()[-1])
    assert list(errors) == saved
    assert saved
    failed = {name: error for name, error in errors.items() if error}
    assert not failed, "\n".join(failed.values())


@pytest.mark.parametrize("name", QUICK)
def test_it_trains_across_updates_and_saves(name, folder):
    train_and_save(name, folder)


def test_they_answer_the_same_in_a_fresh_process(folder):
    reload_all(QUICK, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_others_train_across_updates_and_save(name, folder):
    train_and_save(name, folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_others_answer_the_same_in_a_fresh_process(folder):
    reload_all(SLOW, folder)
