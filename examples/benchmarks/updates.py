"""What share of a run do the basis updates take? The paper's Autoformer at every rank that it passes.

    python updates.py --output results/updates.json

Every layer takes part in every update, the dearest case. Between updates `steps` steps are timed, and their median
stands for each of the `interval` steps of a real run.
"""

from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast

from methods import trainable
from peft import get_peft_model
from step import forward_of
from tasks import TASKS
from timing import compile_in_place, now, write
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
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16: autocast."})
    compile: str = field(default="", metadata={"help": "Backend or mode of torch.compile; default eager."})
    output: str = field(default="results/updates.json", metadata={"help": "Results file."})


def main() -> None:
    """Trains, times steps and updates and writes the share of the updates."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    task = TASKS[settings.task]().on(settings.device)
    config = OIALRConfig(
        delay=settings.steps,
        update_interval=settings.steps,
        train_rest=True,
        exclude_modules=task.excluded,
        layer_step=1.0,
        sigma_cutoff=0.999,
        max_cut=0.5,
    )
    model = get_peft_model(task.make(), config)
    forward = forward_of(task, model, settings.device, settings.dtype)
    compile_in_place(model, settings.compile)
    optimizer = AdamW(trainable(model), 1e-4)
    updater = OIALRUpdater(model, optimizer)
    rows, times = [], []
    for _ in tqdm(range(settings.steps * settings.updates), desc="steps"):
        began = now(settings.device)
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()
        ended = now(settings.device)
        times.append(ended - began)
        if report := updater.step():
            seconds = now(settings.device) - ended
            step = median(times[2:])  # the first ones after a change of shape are slower
            share = seconds / (seconds + settings.interval * step)
            row = {"mean rank after": report.as_logs()["oialr/mean_rank"], "update seconds": seconds}
            rows.append({**row, "step seconds": step, "share": share})
            times = []
    total = sum(row["update seconds"] for row in rows)
    wall = total + settings.interval * sum(row["step seconds"] for row in rows)
    write(settings.output, rows, share=total / wall, interval=settings.interval)
    print(f"all updates: {total / wall:.2%} of the wall time")


if __name__ == "__main__":
    main()
