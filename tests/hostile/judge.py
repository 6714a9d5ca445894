"""What becomes of a damaged or hostile input: each is tried in a process of its own, which is timed and weighed."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


SECONDS, BYTES = 5.0, 1 << 30
_WALL = 120.0  # a machine may be busy with other things; processor time is what counts


@dataclass(frozen=True)
class Verdict:
    """What came of a case: right (as the sound input), refused (in our words), obscure (in others'), silent (accepted
    and wrong), slow, heavy, or crash."""

    case: str
    outcome: str
    words: str = ""


def judged(case: str, attempt: Callable[[], bool], names: tuple[str, ...]) -> Verdict:
    """Try it: `attempt` returns whether the result is that of the sound input; a clear refusal has one of `names`."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _try(attempt, writer)
    os.close(writer)
    began = time.monotonic()
    while not (ended := os.wait4(pid, os.WNOHANG))[0]:
        if time.monotonic() - began > _WALL:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    if not answer:
        over = os.WIFSIGNALED(ended[1]) and os.WTERMSIG(ended[1]) in (signal.SIGXCPU, signal.SIGKILL)
        return Verdict(case, "slow" if over else "crash", f"status {ended[1]}")
    right, error, peak, seconds = pickle.loads(answer)
    if seconds > SECONDS or peak > BYTES:
        return Verdict(case, "slow" if seconds > SECONDS else "heavy", f"{seconds:.1f} s, {peak >> 20} MB")
    if error is None:
        return Verdict(case, "right" if right else "silent")
    kind, words = error
    clear = kind in ("ValueError", "TypeError", "OSError", "FileNotFoundError", "IsADirectoryError")
    return Verdict(
        case, "refused" if clear and any(name in words for name in names) else "obscure", f"{kind}: {words}"
    )


def _try(attempt: Callable[[], bool], writer: int) -> None:
    """In the child: never returns."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        torch.set_num_threads(1)
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = used.ru_utime + used.ru_stime
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds + 4 * SECONDS), int(seconds + 4 * SECONDS) + 1))
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the parent
        before, right, error = _memory("VmRSS"), False, None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                right = attempt()
            except Exception as found:
                error = (type(found).__name__, str(found))
        used = resource.getrusage(resource.RUSAGE_SELF)
        answer = (right, error, _memory("VmHWM") - before, used.ru_utime + used.ru_stime - seconds)
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
    finally:
        os._exit(0)


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10
