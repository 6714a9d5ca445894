"""What a finished run left in its folder: the Trainer's logs and the trace of the updates."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import tell
from ..training.trace import read_trace


@dataclass(frozen=True)
class Run:
    """A run as its files tell it.

    Attributes:
        name: of the folder or file.
        logs: the Trainer's log entries, each with its "step".
        updates: the records of a trace, with the rank of every layer; empty where the callback wrote none.
    """

    name: str
    logs: list[dict[str, Any]]
    updates: list[dict[str, Any]]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(steps, values) of what was logged under a name."""
        found = [(log["step"], log[key]) for log in self.logs if key in log]
        return [step for step, _ in found], [value for _, value in found]


def read_run(path: str | os.PathLike) -> Run:
    """A run from the Trainer's output folder, or from a trace alone.

    In a folder the logs are those of `trainer_state.json`, its own (`trainer.save_state()`) or, where there is none or
    the run went on from it, the latest checkpoint's. The trace is the `*.jsonl` file in it with updates
    (`OIALRCallback(trace=...)`); of several the first by name, with a warning.

    Raises:
        ValueError: there is neither, or no OIALR update in them.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no run at '{path}'. Give the Trainer's output folder, or a trace file.")
    traces = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    found = {trace.name: updates for trace in traces if (updates := read_trace(trace))}
    updates = next(iter(found.values()), [])
    if len(found) > 1:
        tell(f"'{path}' has several traces ({', '.join(found)}); the first is taken. Give another one by its path.")
    logs = [] if path.is_file() else _logs(path)
    run = Run(path.resolve().name, logs, updates)
    if not updates and not run.series("oialr/mean_rank")[0]:
        raise ValueError(
            f"'{path}' tells of no OIALR update: it has no trace (`OIALRCallback(trace='{path}/trace.jsonl')`), and "
            "no trainer_state.json of a run with updates (`trainer.save_state()`, or any checkpoint)."
        )
    return run


def _logs(folder: Path) -> list[dict[str, Any]]:
    """The folder's own log, or that of its latest checkpoint where it has none or is the beginning of that one."""
    own = _state(folder / "trainer_state.json")
    states = [state for file in folder.glob("checkpoint-*/trainer_state.json") if (state := _state(file))]
    _, latest = max(states, key=lambda state: state[0], default=(0, []))
    if own is None:
        return latest
    _, logs = own
    told = list(takewhile(lambda log: "train_runtime" not in log, logs))  # which ends a run, and not one that goes on
    if len(latest) <= len(told):
        return logs
    if latest[: len(told)] == told:
        return latest
    tell(
        f"'{folder}' has two runs; its own trainer_state.json is told, not the longer one of its checkpoints. Give "
        "each run a folder."
    )
    return logs


def _state(file: Path) -> tuple[int, list[dict[str, Any]]] | None:
    """(steps, logs) of a trainer_state.json; None where there is none, or it was cut off by a crash."""
    if not file.exists():
        return None
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return state["global_step"], [log for log in state["log_history"] if "step" in log]
    except (ValueError, TypeError, KeyError) as error:
        tell(f"'{file}' cannot be read and is passed over ({error}).")
        return None
