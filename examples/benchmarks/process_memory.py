"""How much memory does a run take, step by step? A BERT of base size, full fine-tuning against OIALR.

    python process_memory.py --output results/process_memory.json

OIALR halves its ranks at every update until they are a quarter. On a CPU each method runs in a process of its own; the
figure is the resident memory minus what the process held after its imports, the largest sample within each step. On a
GPU it is the allocator's own peak, minus what was allocated before the model.
"""

import gc
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from methods import trainable
from peft import get_peft_model
from step import forward_of
from tasks import LARGE, TINY, bert
from timing import write
from torch.optim import AdamW
from transformers import HfArgumentParser

from oialr_peft import OIALRConfig, OIALRUpdater


CUTS: dict[str, Any] = {"layer_step": 1.0, "sigma_cutoff": 0.999, "max_cut": 0.5, "min_rank": 0.25}
SIZES = {"base": {}, "large": LARGE, "tiny": TINY}
METHODS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "OIALR from full rank": {"delay": 4, "train_rest": True},
    "OIALR fine-tuning": {},
    "OIALR fine-tuning, base freed": {"keep_base_weights": False},
}


@dataclass
class Settings:
    """Settings of the measurement."""

    method: str | None = field(default=None, metadata={"help": "Run this one here; default all, each in a process."})
    layers: int = field(default=12, metadata={"help": "BERT's layers."})
    sequences: int = field(default=8, metadata={"help": "Sequences per step."})
    tokens: int = field(default=128, metadata={"help": "Tokens of a sequence."})
    size: str = field(default="base", metadata={"choices": list(SIZES), "help": "BERT's width."})
    steps: int = field(default=16, metadata={"help": "Training steps; an update every four."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16: autocast."})
    apart: bool = field(default=True, metadata={"help": "On a CPU, each method in a process of its own."})
    output: str = field(default="results/process_memory.json", metadata={"help": "Results file."})


class Peaks(threading.Thread):
    """Samples the resident memory of this process every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process()
        self.before = self.process.memory_info().rss
        self.peak = 0

    def run(self) -> None:
        """Samples until the process ends."""
        while True:
            self.peak = max(self.peak, self._more())
            time.sleep(0.003)

    def take(self) -> int:
        """The largest sample since the last call, and now: a loaded machine may have sampled none; never nothing."""
        peak, self.peak = max(self.peak, self._more(), 1), 0
        return peak

    def _more(self) -> int:
        return self.process.memory_info().rss - self.before


class DevicePeaks:
    """The peak of the memory that torch allocated on the GPU, minus what was there before."""

    def __init__(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        self.before = torch.cuda.memory_allocated()

    def start(self) -> None:
        """Begins to watch."""
        torch.cuda.reset_peak_memory_stats()

    def take(self) -> int:
        """The peak since the last call."""
        peak = torch.cuda.max_memory_allocated() - self.before
        torch.cuda.reset_peak_memory_stats()
        return peak


def main() -> None:
    """Runs one method, or all of them in turn."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    if settings.method is not None:
        print(json.dumps(train(settings.method, settings)))
        return
    here = settings.device != "cpu" or not settings.apart
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        rows.append({"method": method, **(train(method, settings) if here else train_apart(method, settings))})
    dense = rows[0]["steps"]
    for row in rows:
        row["largest/dense"] = max(own / other for own, other in zip(row["steps"], dense, strict=True))
        row["last/dense"] = row["steps"][-1] / dense[-1]
    write(settings.output, rows)


def train_apart(method: str, settings: Settings) -> dict[str, Any]:
    """What `train` returns, from a new process."""
    names = ("layers", "sequences", "tokens", "size", "steps", "dtype")
    sizes = [f"--{name}={getattr(settings, name)}" for name in names]
    command = [sys.executable, str(Path(__file__).resolve()), "--method", method, *sizes]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def train(method: str, settings: Settings) -> dict[str, Any]:
    """The bytes at the peak of making the model, and of every step with the update that follows it."""
    peaks, config = Peaks() if settings.device == "cpu" else DevicePeaks(), METHODS[method]
    peaks.start()
    task = bert(settings.layers, settings.sequences, settings.tokens, **SIZES[settings.size]).on(settings.device)
    model = task.make()
    if config is not None:
        model = get_peft_model(model, OIALRConfig(update_interval=4, **CUTS, **config))
    optimizer = AdamW(trainable(model), 1e-4)
    updater = None if config is None else OIALRUpdater(model, optimizer)
    forward = forward_of(task, model, settings.device, settings.dtype)
    setup, steps = peaks.take(), []
    for _ in range(settings.steps):
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()
        if updater is not None:
            updater.step()
        steps.append(peaks.take())
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    state = sum(value.nbytes for entry in optimizer.state.values() for value in entry.values())
    return {"setup": setup, "steps": steps, "tensors at the end": held + state}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
