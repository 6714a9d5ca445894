"""One training run: `train_one("dense" | "oialr", settings, splits)`."""

import os
import platform
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import datasets
import peft
import torch
import transformers
from metrics import forecast_errors
from model import KEPT_DENSE, build_config, build_model, keep_forecast, mse_loss
from peft import PeftConfig, get_peft_model
from protocol import BenchmarkTrainer, TrainingClock, training_arguments
from settings import Settings
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from windows import Splits


METHODS = ("dense", "oialr")


def train_one(method: str, settings: Settings, splits: Splits, resume: bool = False) -> dict[str, Any]:
    """Trains the model, writes it to `settings.output`/`method` and returns the record of the run.

    Both methods start from the same weights and see the same batches. The record holds validation MSE per epoch, test
    MSE and MAE over all windows (normalised units) of the last epoch's model, or with `patience` of the best epoch's,
    parameter counts, bytes of the model to ship, seconds per step, settings, versions and hardware. With `resume` a
    run that was cut off goes on from its last whole checkpoint, and ends where it would have.

    Raises:
        ValueError: unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method: must be one of {METHODS}, got {method!r}.")
    folder = Path(settings.output) / method
    trainer, clock = make_trainer(method, settings, splits, folder)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder) if resume else None)
    return make_record(method, settings, splits, folder, trainer, clock)


def last_checkpoint(folder: Path) -> str | None:
    """The newest that was written to its end, None without any."""
    from oialr_peft.checkpoint import last_complete_checkpoint  # here and below, so that a dense run does without

    return last_complete_checkpoint(folder)


def make_trainer(
    method: str, settings: Settings, splits: Splits, folder: Path
) -> tuple[BenchmarkTrainer, TrainingClock]:
    """Returns a Trainer of the seeded model, ready to train into `folder`, and the clock among its callbacks."""
    set_seed(settings.seed)
    clock = TrainingClock()
    model: Any = build_model(model_config(settings), settings.mend_attention)
    callbacks: list[TrainerCallback] = [clock]
    if settings.patience:
        callbacks.append(EarlyStoppingCallback(settings.patience))
    if method == "oialr":
        model, callback = factorise(model, settings, folder / "trace.jsonl")
        callbacks.insert(0, callback)
    trainer = BenchmarkTrainer(
        model=model,
        args=training_arguments(settings, folder),
        train_dataset=splits.train,
        eval_dataset=splits.validation,
        compute_loss_func=mse_loss,
        compute_metrics=forecast_errors,
        preprocess_logits_for_metrics=keep_forecast,
        callbacks=callbacks,
    )
    return trainer, clock


def make_record(
    method: str, settings: Settings, splits: Splits, folder: Path, trainer: BenchmarkTrainer, clock: TrainingClock
) -> dict[str, Any]:
    """Evaluates and saves the trained model and returns the record that `train_one` describes."""
    model: Any = trainer.model
    test = trainer.evaluate(cast(Any, splits.test), metric_key_prefix="test")
    model.save_pretrained(folder)
    dense_parameters = parameter_counts(build_model(model_config(settings), settings.mend_attention))[0]
    return {
        "method": method,
        "validation_mse": [entry["eval_mse"] for entry in trainer.state.log_history if "eval_mse" in entry],
        "test_mse": test["test_mse"],
        "test_mae": test["test_mae"],
        "seconds_per_step": clock.seconds / clock.steps,
        "steps": trainer.state.global_step,
        "ranks": model.base_model.ranks() if method == "oialr" else None,
        "protocol": splits.protocol,
        "settings": asdict(settings),
        **sizes(model, folder, dense_parameters),
        **surroundings(trainer.args.device),
    }


def model_config(settings: Settings) -> transformers.AutoformerConfig:
    """Returns the model's configuration; the names of its sizes are the same in `Settings`."""
    names = ("horizon", "context", "label_length", "d_model", "heads", "ffn", "encoder_layers", "decoder_layers")
    return build_config(**{name: getattr(settings, name) for name in (*names, "moving_average", "dropout")})


def factorise(model: nn.Module, settings: Settings, trace: Path) -> tuple[nn.Module, TrainerCallback]:
    """Returns the model under OIALR and its callback."""
    from oialr_peft import OIALRCallback

    return get_peft_model(model, oialr_config(settings)), OIALRCallback(trace=str(trace))


def oialr_config(settings: Settings) -> PeftConfig:
    """Returns the configuration of OIALR in the paper's mode: everything else trains too.

    Raises:
        ValueError: from `OIALRConfig`, of settings that are unfit or unfit together.
    """
    from oialr_peft import OIALRConfig

    ends = {name: getattr(settings, name) for name in ("target_size", "sigma_cutoff", "layer_step")}
    return OIALRConfig(
        **{name: value for name, value in ends.items() if value is not None},
        r=settings.rank,
        bases=cast(Any, settings.bases),
        freeze_bases=settings.freeze_bases,
        delay=settings.delay,
        update_interval=settings.update_interval,
        moments=cast(Any, settings.moments),
        train_rest=True,
        keep_first_layer=settings.keep_first_layer,
        exclude_modules=KEPT_DENSE,
    )


def check_oialr(settings: Settings, splits: Splits) -> None:
    """Makes what an OIALR run starts with, and throws it away.

    Raises:
        ValueError: from `OIALRConfig` or `OIALRUpdater`, such as of a size below the least that the model can have.
    """
    from oialr_peft import OIALRUpdater

    model, _ = factorise(build_model(model_config(settings), settings.mend_attention), settings, Path())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    steps = settings.epochs * (len(splits.train) // settings.batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will say so
        OIALRUpdater(model, optimizer, total_steps=settings.max_steps if settings.max_steps > 0 else steps)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Returns (trainable, held): elements that training may change, and of all parameters and buffers."""
    held = [*model.parameters(), *model.buffers()]
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(t.numel() for t in held)


def sizes(model: nn.Module, folder: Path, dense_parameters: int) -> dict[str, float]:
    """Returns the record's sizes; the share trained is in percent of the dense model's trainable parameters."""
    trainable, held = parameter_counts(model)
    return {
        "trainable_parameters": trainable,
        "trainable_percent": 100 * trainable / dense_parameters,
        "parameters_held": held,
        "compressed_bytes": compressed_bytes(model, folder),
    }


def bytes_in(folder: Path) -> int:
    """Of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def compressed_bytes(model: nn.Module, folder: Path) -> int:
    """Of the model to ship: the dense file, or what `save_compressed` writes of a model under OIALR."""
    if not hasattr(model, "peft_config"):
        return bytes_in(folder)
    from oialr_peft import save_compressed

    save_compressed(model, folder / "compressed")
    return bytes_in(folder / "compressed")


def surroundings(device: torch.device) -> dict[str, Any]:
    """Returns command, versions and hardware, on which the figures depend."""
    modules = {"torch": torch, "transformers": transformers, "datasets": datasets, "peft": peft}
    hardware = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {
        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: m.__version__ for name, m in modules.items()},
        "hardware": {**hardware, "device": str(device)},
    }
