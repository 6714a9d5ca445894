"""Does a basis settle before the mixing? Trains three small models with StabilityCallback.

    python train.py --data folder --task gpt --output stability/gpt

The learning rate is constant after a short warm-up: where it falls to zero, every basis settles.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from tasks import TASKS  # which puts the folder of timing.py on the path
from timing import environment
from transformers import Trainer, TrainingArguments, set_seed

from oialr_peft import StabilityCallback
from oialr_peft.report.plots import plot_stability


def main() -> None:
    """Trains one model, and writes results.json and stability.png into the output folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare, cifar10-jpeg, ETT-small")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="steps between two checkpoints")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parsed = parser.parse_args()
    set_seed(parsed.seed)
    task = TASKS[parsed.task](parsed.data)
    measured = parsed.output / "stability.json"
    trainer = Trainer(
        task.make(),
        arguments(parsed, task.rate),
        train_dataset=task.data,
        callbacks=[StabilityCallback(measured, every=parsed.every)],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    points = json.loads(measured.read_text())["points"]
    facts: dict[str, Any] = {"task": parsed.task, "name": task.name, "learning_rate": task.rate}
    facts |= {name: getattr(parsed, name) for name in ("steps", "every", "batch", "seed")}
    facts |= {**environment(), "first loss": losses[0], "last loss": mean(losses[-3:])}
    (parsed.output / "results.json").write_text(json.dumps({**facts, "points": points}, indent=1) + "\n")
    measured.unlink()
    plot_stability(parsed.output / "results.json", parsed.output / "stability.png")


def arguments(parsed: argparse.Namespace, rate: float) -> TrainingArguments:
    """AdamW at a constant rate after a warm-up of a fortieth of the run."""
    return TrainingArguments(
        str(parsed.output),
        max_steps=parsed.steps,
        per_device_train_batch_size=parsed.batch,
        learning_rate=rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=parsed.steps // 40,
        logging_steps=max(1, parsed.every // 2),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=parsed.seed,
    )


if __name__ == "__main__":
    main()
