"""How much memory does a run take, step by step? A BERT of base size, full fine-tuning against OIALR.

    python process_memory.py --output results/process_memory.json

Every method runs in a process of its own. OIALR halves its ranks at every update until they are a quarter. The figure
is the resident memory minus what the process held after its imports, the largest sample within each step.
"""

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
from tasks import bert
from timing import write
from torch.optim import AdamW
from transformers import HfArgumentParser

from oialr_peft import OIALRConfig, OIALRUpdater


CUTS: dict[str, Any] = {"layer_step": 1.0, "sigma_cutoff": 0.999, "max_cut": 0.5, "min_rank": 0.25}
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
    sequences: int = field(default=8, metadata={"help": "Sequences of 128 tokens per step."})
    steps: int = field(default=16, metadata={"help": "Training steps; an update every four."})
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
            self.peak = max(self.peak, self.process.memory_info().rss - self.before)
            time.sleep(0.003)

    def take(self) -> int:
        """The largest sample since the last call."""
        peak, self.peak = self.peak, 0
        return peak


def main() -> None:
    """Runs one method, or all of them in turn."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    if settings.method is not None:
        print(json.dumps(train(settings)))
        return
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        sizes = [f"--{name}={getattr(settings, name)}" for name in ("layers", "sequences", "steps")]
        command = [sys.executable, str(Path(__file__).resolve()), "--method", method, *sizes]
        peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append({"method": method, **peaks})
    dense = rows[0]["steps"]
    for row in rows:
        row["largest/dense"] = max(own / other for own, other in zip(row["steps"], dense, strict=True))
        row["last/dense"] = row["steps"][-1] / dense[-1]
    write(settings.output, rows)


def train(settings: Settings) -> dict[str, Any]:
    """The bytes at the peak of making the model, and of every step with the update that follows it."""
    peaks, config = Peaks(), METHODS[settings.method or "dense"]
    peaks.start()
    task = bert(settings.layers, settings.sequences)
    model = task.make()
    if config is not None:
        model = get_peft_model(model, OIALRConfig(update_interval=4, **CUTS, **config))
    optimizer = AdamW(trainable(model), 1e-4)
    updater = None if config is None else OIALRUpdater(model, optimizer)
    setup, steps = peaks.take(), []
    for _ in range(settings.steps):
        task.loss(model(**task.batch)).backward()
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
