"""A run's updates as JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..update_report import UpdateReport


def append_report(path: str | os.PathLike, report: UpdateReport) -> None:
    """Append one update to the trace at `path`, making the file and its folders where needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(report.as_dict()) + "\n")


def read_trace(path: str | os.PathLike) -> list[dict]:
    """The updates of a trace by step. A step that was run again after a resume counts as the last run made it.

    A last line that was cut off by a crash is left out.
    """
    updates: dict[int, dict] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            update = json.loads(line)
        except json.JSONDecodeError:
            continue
        updates[update["step"]] = update
    return [updates[step] for step in sorted(updates)]
