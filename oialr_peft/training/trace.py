"""A run's updates as JSON lines."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from ..errors import tell
from ..update_report import UpdateReport


class Trace:
    """The file that gets a line per update. It is not worth a run: what cannot be written is warned of once.

    Args:
        path: its folders are made where needed.
        new: whether a new run begins; lines of an earlier one are removed then.

    Raises:
        ValueError: a new run is to begin in a file that is no trace.
    """

    def __init__(self, path: str | os.PathLike, *, new: bool) -> None:
        self.path = Path(path).absolute()  # wherever the process goes
        self._warned = False
        if new:
            if self.path.is_file() and not _is_trace(self.path):
                raise ValueError(
                    f"`trace`: the file '{self.path}' has something else than the updates of a run, which a new run "
                    "would remove. Give OIALRCallback another file."
                )
            if self.path.is_file() or not self.path.exists():  # no device, no pipe
                self._try(lambda: self.path.unlink(missing_ok=True))

    def append(self, report: UpdateReport) -> None:
        """Add one update."""
        self._try(lambda: _append(self.path, json.dumps(report.as_dict())))

    def _try(self, write) -> None:
        try:
            write()
        except OSError as error:
            if not self._warned:
                self._warned = True
                tell(
                    f"The trace {self.path} cannot be written ({error}). Training goes on; updates are in the logs. "
                    "Free space on the disk, or give OIALRCallback another `trace`."
                )


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a crash cut the last line, which must not take this one with it
                line = "\n" + line
        file.write(line.encode() + b"\n")


_NEEDED = ("ranks", "changed", "seconds")  # of an update, in traces of every version


def _is_trace(path: Path) -> bool:
    """Whether a file is a trace, if only the beginning of its first line; also an empty one."""
    with suppress(OSError):
        with path.open("rb") as file:
            return not (beginning := file.read(10_000)) or b'"update_number"' in beginning
    return True  # what cannot be read cannot be removed either


def read_trace(path: str | os.PathLike) -> list[dict]:
    """The updates of a trace by step. From a step on that was run again after a resume, the last run counts.

    A line that was cut off by a crash, or tells of something else, of other layers or none, is left out.
    """
    updates: list[dict] = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            update = json.loads(line)
            step = update["step"]
            if not all(name in update for name in _NEEDED):
                continue
            while updates and updates[-1]["step"] >= step:
                updates.pop()
            updates.append(update)
        except (json.JSONDecodeError, TypeError, KeyError):
            continue
    return [update for update in updates if update["ranks"] and update["ranks"].keys() == updates[-1]["ranks"].keys()]
