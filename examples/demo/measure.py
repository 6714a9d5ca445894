"""Bytes, latency, and the time of the last steps."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """The time of every training step: forward, backward and optimizer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)

    def last_tenth(self) -> float:
        """Median over the last tenth of the run."""
        return median(self.seconds[-max(1, len(self.seconds) // 10) :])


@torch.no_grad()
def latencies(models: dict[str, Any], images: torch.Tensor) -> dict[str, float]:
    """Median seconds for one batch of each model, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(40):
        for name, model in models.items():
            start = time.perf_counter()
            model(images)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times[10:]) for name, times in seconds.items()}


def megabytes(folder: Path) -> float:
    """Size of the files of a saved model."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
