"""What share of a run do the basis updates take? The paper's Autoformer at every rank that it passes.

    python updates.py --output results/updates.json

Every layer takes part in every update, the dearest case. Between updates `steps` steps are timed, and their median
stands for each of the `interval` steps of a real run.
"""

import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast

import torch
from methods import trainable
from peft import get_peft_model
from tasks import TASKS
from timing import write
from torch.optim import AdamW
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from oialr_peft import OIALRConfig, OIALRUpdater


@dataclass
class Settings:
    """Settings of the measurement."""

    task: str = field(default="autoformer", metadata={"choices": sorted(TASKS), "help": "Model and data."})
    interval: int = field(default=400, metadata={"help": "Steps between updates that the share is given for."})
    steps: int = field(default=8, metadata={"help": "Steps that are timed between updates."})
    updates: int = field(default=4, metadata={"help": "Updates; the first one factorises."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    output: str = field(default="results/updates.json", metadata={"help": "Results file."})


def main() -> None:
    """Trains, times steps and updates and writes the share of the updates."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    task = TASKS[settings.task]()
    config = OIALRConfig(
        delay=settings.steps,
        update_interval=settings.steps,
        train_rest=True,
        exclude_modules=task.excluded,
        layer_step=1.0,
        sigma_cutoff=0.999,
        max_cut=0.5,
    )
    model = get_peft_model(task.make(), config).to(settings.device)
    batch = {name: tensor.to(settings.device) for name, tensor in task.batch.items()}
    optimizer = AdamW(trainable(model), 1e-4)
    updater = OIALRUpdater(model, optimizer)
    rows, times = [], []
    for _ in tqdm(range(settings.steps * settings.updates), desc="steps"):
        began = time.perf_counter()
        optimizer.zero_grad()
        task.loss(model(**batch)).backward()
        optimizer.step()
        if settings.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        if report := updater.step():
            step = median(times[2:])  # the first ones after a change of shape are slower
            share = report.seconds / (report.seconds + settings.interval * step)
            row = {"mean rank after": report.as_logs()["oialr/mean_rank"], "update seconds": report.seconds}
            rows.append({**row, "step seconds": step, "share": share})
            times = []
    total = sum(row["update seconds"] for row in rows)
    wall = total + settings.interval * sum(row["step seconds"] for row in rows)
    write(settings.output, rows, share=total / wall, interval=settings.interval)
    print(f"all updates: {total / wall:.2%} of the wall time")


if __name__ == "__main__":
    main()
