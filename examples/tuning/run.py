"""Searches OIALR's setting for a small GPT-2 on TinyShakespeare with the Trainer and Optuna, then compares it.

    python run.py --text input.txt --trials 12 --output tuning
    python run.py --text input.txt --trials 12 --output tuning   # again, or elsewhere: goes on

The study is a file in the output folder, so that a search that was stopped goes on, and several processes share one;
give each another `--seed`. A trial that was killed half-way does not count, one that diverged does, as the worst.
Trials are judged, and pruned, by the loss on validation text. The setting that won and the default are then trained
with new seeds, and judged on validation and test text. Needs the extra `tuning`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import optuna
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from oialr_peft import OIALRCallback, OIALRConfig, oialr_search_space
from oialr_peft.training.search import oialr_fields


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from timing import environment


CONTEXT, WIDTH, LAYERS, BATCH = 32, 64, 2, 16
ENDED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
DEFAULT = {"learning_rate": 5e-4, "weight_decay": 0.01, "max_grad_norm": 1.0}
DEFAULT_FIELDS = {
    "delay": 0.3,
    "update_interval": 0.05,
    "sigma_cutoff": 0.1,
}  # the documentation's from scratch, before there was target_size


class Windows(Dataset):
    """Non-overlapping windows of characters."""

    def __init__(self, codes: Tensor) -> None:
        self.rows = codes[: len(codes) // CONTEXT * CONTEXT].view(-1, CONTEXT)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def splits(path: Path) -> tuple[dict[str, Windows], int]:
    """The first 90 % of the text to train, 256 windows each for validation and test, and the number of characters."""
    text = path.read_text(encoding="utf-8")
    known = {character: code for code, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([known[character] for character in text])
    ends = [int(share * len(codes)) for share in (0.9, 0.95)]
    held = 256 * CONTEXT
    parts = {"train": codes[: ends[0]], "validation": codes[ends[0] :][:held], "test": codes[ends[1] :][:held]}
    return {name: Windows(part) for name, part in parts.items()}, len(known)


def make_trainer(
    parsed: argparse.Namespace, make: Callable[..., Any], data: dict[str, Windows], **settings: Any
) -> Trainer:
    """A Trainer whose models `make` makes from a trial."""
    arguments = TrainingArguments(
        str(parsed.output / "runs"),
        max_steps=parsed.steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=128,
        lr_scheduler_type="cosine",
        eval_strategy="steps",
        eval_steps=max(1, parsed.steps // 4),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    given: dict[str, Any] = {"train_dataset": data["train"], "eval_dataset": data["validation"]}
    return Trainer(model_init=make, args=arguments, callbacks=[OIALRCallback()], **given)


def loss_of(metrics: dict[str, float]) -> float:
    """The validation loss; of a trial that diverged infinity, since Optuna counts one without a number as failed."""
    return metrics["eval_loss"] if math.isfinite(metrics["eval_loss"]) else math.inf


def search(parsed: argparse.Namespace, make: Callable[[Any], nn.Module], data: dict[str, Windows]) -> optuna.Study:
    """The study once it has its trials; those of earlier runs and of other processes count.

    Raises:
        SystemExit: the study in the folder is of trials of another length.
    """
    place: Any = {"study_name": "oialr", "storage": f"sqlite:///{parsed.output / 'study.db'}", "load_if_exists": True}
    study = optuna.create_study(direction="minimize", **place)
    if (steps := study.user_attrs.get("steps", parsed.steps)) != parsed.steps:
        raise SystemExit(
            f"The study in '{parsed.output}' has trials of {steps} steps, not {parsed.steps}: give `--steps {steps}`, "
            "or another --output."
        )
    study.set_user_attr("steps", parsed.steps)
    while len(study.get_trials(states=ENDED)) < parsed.trials:
        # A sampler that begins anew with one seed would repeat its first trial.
        seed = random.Random(f"{parsed.seed} {len(study.trials)}").getrandbits(32)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
        make_trainer(parsed, make, data).hyperparameter_search(
            hp_space=oialr_search_space,
            direction="minimize",
            backend="optuna",
            n_trials=1,
            compute_objective=loss_of,
            sampler=sampler,
            pruner=pruner,
            **place,
        )
    return study


def judge(
    parsed: argparse.Namespace, make: Callable[..., nn.Module], data: dict[str, Windows], values: dict[str, float]
) -> dict[str, Any]:
    """Losses on validation and test of runs with new seeds, and the share of values that train in the end."""
    fields = {name: values[name] for name in DEFAULT_FIELDS}
    settings = {name: values[name] for name in DEFAULT}
    found: dict[str, Any] = {"values": values, "validation": [], "test": [], "trained": []}
    for seed in range(100, 100 + parsed.seeds):
        set_seed(seed)
        trainer = make_trainer(parsed, lambda: make(fields), data, seed=seed, **settings)
        trainer.train()
        for part in ("validation", "test"):
            found[part].append(trainer.evaluate(data[part])["eval_loss"])  # type: ignore[arg-type]
        found["trained"].append(sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))  # type: ignore[union-attr]
    return found


def main() -> None:
    """Searches, compares, writes results.json and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=12, help="of the study in all, ended ones counted")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="of the comparison")
    parser.add_argument("--seed", type=int, default=0, help="of the search; another for each process")
    parser.add_argument("--output", type=Path, required=True)
    parsed = parser.parse_args()
    parsed.output.mkdir(parents=True, exist_ok=True)
    data, characters = splits(parsed.text)
    sizes: dict[str, Any] = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2}

    def make(fields: dict[str, float]) -> nn.Module:
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=characters, **sizes))
        return get_peft_model(model, OIALRConfig(train_rest=True, **fields))  # type: ignore[return-value]

    study = search(parsed, lambda trial: make(oialr_fields(trial)), data)
    rate = {"learning_rate": study.best_params["learning_rate"]}
    states = [trial.state.name for trial in study.get_trials(states=ENDED)]
    results = {
        **environment(),
        "steps": parsed.steps,
        "trials": {state: states.count(state) for state in sorted(set(states))},
        "best of the search": study.best_value,
        "default": judge(parsed, make, data, DEFAULT | DEFAULT_FIELDS),
        "default but for the tuned learning rate": judge(parsed, make, data, DEFAULT | DEFAULT_FIELDS | rate),
        "tuned": judge(parsed, make, data, study.best_params),
    }
    (parsed.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    losses = [f"{mean(results[name]['validation']):.4f}" for name in ("default", "tuned")]
    print(f"validation loss: {losses[0]} by default, {losses[1]} tuned")


if __name__ == "__main__":
    main()
