"""What do basis updates cost under DDP? Steps and updates of a BERT on one or more processes, NCCL or gloo.

    python processes.py --processes 2 --device cuda --output processes.json

Every process has a GPU of its own (on a CPU they share it). After every update the processes compare what they hold.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as processing
from peft import get_peft_model
from torch import nn
from torch.optim import AdamW
from transformers import HfArgumentParser

from oialr_peft import OIALRConfig, OIALRUpdater


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from methods import trainable
from step import forward_of
from tasks import TASKS
from timing import now, write


@dataclass
class Settings:
    """Settings of the measurement."""

    processes: int = field(default=1, metadata={"help": "Processes, one GPU each."})
    task: str = field(default="bert_large", metadata={"choices": sorted(TASKS), "help": "Model and data."})
    steps: int = field(default=10, metadata={"help": "Steps between updates."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    output: str = field(default="results/processes.json", metadata={"help": "Results file."})


def main() -> None:
    """Starts the processes; the first one writes."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (settings, os.path.join(folder, "meeting"))
        start: Any = processing.start_processes  # pyright: ignore[reportPrivateImportUsage]
        start(train, arguments, settings.processes, start_method="fork")


def train(rank: int, settings: Settings, meeting: str) -> None:
    """Dense steps, then OIALR's with three updates, of one process."""
    cuda = settings.device != "cpu"
    if cuda:
        torch.cuda.set_device(rank)
    backend, count = "nccl" if cuda else "gloo", settings.processes
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=count)
    device = f"cuda:{rank}" if cuda else "cpu"
    dense, _ = _times(settings, device, None)
    config = OIALRConfig(update_interval=settings.steps, layer_step=1.0, sigma_cutoff=0.999, keep_base_weights=False)
    steps, updates = _times(settings, device, config)
    if rank == 0:
        row = {"processes": count, "backend": backend, "dense step seconds": dense[0]}
        write(settings.output, [row | {"step seconds": steps, "update seconds": updates}])
    dist.destroy_process_group()


def _times(settings: Settings, device: str, config: OIALRConfig | None) -> tuple[list[float], list[float]]:
    """Median seconds of the steps before each update, and seconds of the updates."""
    task = TASKS[settings.task]().on(device)
    model: nn.Module = task.make()
    if config is not None:
        model = cast(nn.Module, get_peft_model(model, config))  # type: ignore[arg-type]
    replica = nn.parallel.DistributedDataParallel(model)
    optimizer = AdamW(trainable(replica), 1e-4)
    updater = None if config is None else OIALRUpdater(replica, optimizer, check=True)
    forward = forward_of(task, replica, device.split(":")[0], "bfloat16")
    found: tuple[list[float], list[float]] = [], []
    for _ in range(1 if updater is None else 3):
        times = [_step(forward, optimizer, device) for _ in range(settings.steps - 1)]
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()
        began = now(device)
        if updater is not None and updater.step() is None:
            raise RuntimeError(f"No update was made after {settings.steps} steps.")
        found[0].append(median(times[1:]))
        found[1].append(now(device) - began)
    return found


def _step(forward: Any, optimizer: torch.optim.Optimizer, device: str) -> float:
    began = now(device)
    forward().backward()
    optimizer.step()
    optimizer.zero_grad()
    return now(device) - began


if __name__ == "__main__":
    main()
