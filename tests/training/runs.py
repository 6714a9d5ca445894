"""One small Trainer run, used by the tests and, as a script, in processes of its own."""

from __future__ import annotations

import argparse
import json

import torch
from datasets import Dataset
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from oialr_peft import OIALRCallback, OIALRConfig
from tests.conftest import tiny_llama


torch.use_deterministic_algorithms(True)

# Factorised at step 6, updates at 6, 10, 14, 18, 22: at least three cuts after step 12.
SETTINGS = {"delay": 6, "update_interval": 4, "layer_step": 0.3, "sigma_cutoff": 0.3, "train_rest": True}


def dataset(rows: int = 96) -> Dataset:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, 48, (rows, 10), generator=generator)
    ids[:, 5:] = ids[:, :5]  # something to learn
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()}).with_format("torch")


def trainer(output_dir: str, settings: dict | None = None, callbacks=None, model: nn.Module | None = None, **kwargs):
    """A Trainer over a tiny Llama; `callbacks=None` means the OIALR callback."""
    set_seed(3)
    if model is None:
        model = get_peft_model(tiny_llama(attention_dropout=0.1), OIALRConfig(**(SETTINGS | (settings or {}))))
    arguments = {
        "max_steps": 24,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
        "weight_decay": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    data_kwargs = {name: kwargs.pop(name) for name in ("optimizers", "eval_dataset") if name in kwargs}
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir, **(arguments | kwargs)),
        train_dataset=dataset(),
        callbacks=[OIALRCallback()] if callbacks is None else callbacks,
        **data_kwargs,
    )


def losses(run: Trainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in run.state.log_history if "loss" in entry}


def snapshot(run: Trainer) -> dict[str, torch.Tensor]:
    """Every weight and every moment by name, as they are now."""
    state = {f"model.{key}": value.clone() for key, value in run.model.state_dict().items()}
    for index, moments in run.optimizer.state_dict()["state"].items():
        state.update({f"optimizer.{index}.{key}": torch.as_tensor(value).clone() for key, value in moments.items()})
    return state


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--arguments", type=json.loads, default={})
    parser.add_argument("--resume")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = trainer(options.output_dir, options.settings, **options.arguments)
    run.train(resume_from_checkpoint=options.resume)
    torch.save({"losses": losses(run), "state": snapshot(run), "ranks": run.model.base_model.ranks()}, options.out)


if __name__ == "__main__":
    main()
