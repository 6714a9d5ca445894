"""What a finished run left in its folder: the Trainer's logs and the trace of the updates."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    In a folder the logs are those of `trainer_state.json`, its own (`trainer.save_state()`) or the latest
    checkpoint's, and the trace is the `*.jsonl` file in it (`OIALRCallback(trace=...)`).

    Raises:
        ValueError: there is neither, or no OIALR update in them.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no run at '{path}'. Give the Trainer's output folder, or a trace file.")
    traces = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    updates = next((updates for trace in traces if (updates := read_trace(trace))), [])
    logs = [] if path.is_file() else _logs(path)
    run = Run(path.resolve().name, logs, updates)
    if not updates and not run.series("oialr/mean_rank")[0]:
        raise ValueError(
            f"'{path}' tells of no OIALR update: it has no trace (`OIALRCallback(trace='{path}/trace.jsonl')`), and "
            "no trainer_state.json of a run with updates (`trainer.save_state()`, or any checkpoint)."
        )
    return run


def _logs(folder: Path) -> list[dict[str, Any]]:
    states = [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    found = [json.loads(state.read_text(encoding="utf-8")) for state in states if state.exists()]
    latest = max(found, key=lambda state: state["global_step"], default={"log_history": []})
    return [log for log in latest["log_history"] if "step" in log]
