"""kill -9 at any moment, resume from the last whole checkpoint, end bit-identical to the run that was never killed."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from oialr_peft.checkpoint import last_complete_checkpoint
from tests.training import runs


KILLS = 40


def run(folder: Path, prepare=None) -> int:
    """In a process of its own, forked: train from the last whole checkpoint to the end, or until killed."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if prepare is not None:
            prepare()
        trainer = runs.trainer(str(folder), save_strategy="steps", save_steps=2)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        torch.save((trainer.model.state_dict(), trainer.optimizer.state_dict()), folder / "end.pt")
        status = 0
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def flat(value, prefix=""):
    """(name, leaf) of nested dicts, lists and tuples."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    )
    if items is None:
        yield prefix, value
    for key, inner in items or ():
        yield from flat(inner, f"{prefix}/{key}")


def assert_same(folder: Path, expected: Path) -> None:
    a, b = (dict(flat(torch.load(f / "end.pt", weights_only=False))) for f in (folder, expected))
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


def die_in_save(call: int):
    """Half a file is written when the process is killed: the model, the optimizer, the scheduler or random states."""

    def prepare() -> None:
        import safetensors.torch

        calls = iter(range(1, 10**6))
        for module, name in ((torch, "save"), (safetensors.torch, "save_file")):
            original = getattr(module, name)

            def half(data, path, *args, original=original, **kwargs):
                original(data, path, *args, **kwargs)
                if next(calls) == call:
                    os.truncate(path, os.path.getsize(path) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)

            setattr(module, name, half)
        import peft.peft_model

        peft.peft_model.safe_save_file = safetensors.torch.save_file

    return prepare


def die_in_update(call: int):
    """Some layers are rotated and some moments carried when the process is killed."""

    def prepare() -> None:
        from oialr_peft.moments import MomentCarrier

        original, calls = MomentCarrier.transport, iter(range(1, 10**6))

        def transport(*args, **kwargs):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        MomentCarrier.transport = transport

    return prepare


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_forty_kills(tmp_path):
    reference = tmp_path / "reference"
    began = time.monotonic()
    assert wait(run(reference)) == 0
    seconds = time.monotonic() - began
    chance = random.Random(0)
    half_written = 0
    for kill in range(KILLS):
        folder = tmp_path / f"killed-{kill}"
        folder.mkdir()
        if kill < 5:
            killed = wait(run(folder, die_in_save(chance.randrange(3, 30))))
        elif kill < 10:
            killed = wait(run(folder, die_in_update(chance.randrange(1, 60))))
        else:
            pid = run(folder)
            time.sleep(chance.uniform(0.1, 0.95) * seconds)
            os.kill(pid, signal.SIGKILL)
            killed = wait(pid)
        assert os.WIFSIGNALED(killed) or (folder / "end.pt").exists()
        newest = max(folder.glob("checkpoint-*"), key=lambda p: int(p.name[11:]), default=None)
        half_written += newest is not None and str(newest) != last_complete_checkpoint(folder)
        if os.WIFSIGNALED(killed):
            assert wait(run(folder)) == 0, f"the resume after kill {kill} failed"
        assert_same(folder, reference)
    assert half_written >= 5
