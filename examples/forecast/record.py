"""The results file of a comparison: written after every run, and what is in it is not run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import write_json
from timing import environment


class Record:
    """The runs of one plan.

    Args:
        plan: what all runs share, as plain numbers and words.
        facts: what is measured once, for a new file.

    Raises:
        ValueError: the file has runs of another plan.
    """

    def __init__(self, path: Path, plan: dict[str, Any], facts: Callable[[], dict[str, Any]] = dict) -> None:
        made = json.loads(path.read_text()) if path.exists() else {}
        if made.get("plan", plan) != plan:
            other = {name: made["plan"].get(name) for name, value in plan.items() if made["plan"].get(name) != value}
            raise ValueError(
                f"output: {path} has runs of another plan, with {other}; name another file, or remove this one."
            )
        self.path, self.content = path, made or {"plan": plan, **facts(), "runs": []}

    def run(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The run of this key from the file, or made now and written there."""
        for found in self.content["runs"]:
            if {name: found.get(name) for name in key} == key:
                return found
        found = {**key, **make()}
        self.content |= {"runs": [*self.content["runs"], found], **environment()}
        write_json(self.path, self.content)
        print(json.dumps({name: value for name, value in found.items() if name != "curve"}), flush=True)
        return found
