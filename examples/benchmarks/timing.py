"""Timing methods side by side, and what is noted with every result."""

import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
import transformers
from torch import nn
from tqdm.auto import tqdm


def interleave(runs: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Returns the seconds of every run by name; all of them once per round, in an order drawn anew.

    In a fixed order a run would always find the heap and the caches that the same other run left. Two rounds before
    the first that counts let caches, allocators and optimizer state settle.
    """
    names, seconds, chance = list(runs), {name: [] for name in runs}, random.Random(0)
    for number in tqdm(range(rounds + 2), desc="rounds", leave=False):
        for name in chance.sample(names, len(names)):
            began = now(device)
            runs[name]()
            if number >= 2:
                seconds[name].append(now(device) - began)
    return seconds


def ratio(figures: dict[str, list[float]], name: str, *others: str) -> float:
    """The median over the rounds of the figure of `name` against the least of `others` in the same round."""
    return median(ratios(figures, name, *others))


def ratios(figures: dict[str, list[float]], name: str, *others: str) -> list[float]:
    """The figure of `name` against the least of `others`, round by round."""
    rivals = zip(*(figures[other] for other in others), strict=True)
    return [own / min(rival) for own, rival in zip(figures[name], rivals, strict=True)]


def write(output: str, rows: Sequence[dict[str, Any]], **facts: Any) -> None:
    """Writes the table `rows` and other facts as JSON, with the command, versions and hardware; prints the rows."""
    Path(output).write_text(json.dumps({**environment(), **facts, "rows": list(rows)}, indent=2) + "\n")
    for row in rows:
        print(" ".join(f"{key}={round(v, 3) if isinstance(v, float) else v}" for key, v in row.items()))


def environment() -> dict[str, Any]:
    """Command, versions and hardware, on which figures depend."""
    return {
        "command": " ".join(["python", Path(sys.argv[0]).name, *map(_published, sys.argv[1:])]),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "hardware": f"{_processor()}, {torch.get_num_threads()} threads",
    }


def now(device: str) -> float:
    """Seconds by the clock once the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def compile_in_place(model: nn.Module, how: str) -> None:
    """torch.compile of a model's forward, by a backend or a mode of inductor; "" leaves it eager."""
    if how in torch.compiler.list_backends(exclude_tags=()):
        model.compile(backend=how)
    elif how:
        model.compile(mode=how)


def _published(argument: str) -> str:
    """A path of this machine says nothing elsewhere: its last part stands for it, after `--name=` too."""
    name, equals, value = argument.rpartition("=")
    return name + equals + (Path(value).name if Path(value).is_absolute() else value)


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
