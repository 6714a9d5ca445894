"""One run: a method's model trained on the windows, validated on the way, the best checkpoint tested."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from baselines import Forecaster, errors_of
from datasets import Dataset
from models import TARGETS, make_model
from peers import LowRank
from peft import get_peft_model
from sizes import size_of, values_of
from torch import Tensor, nn
from torch.nn import functional as F
from windows import Splits

from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.plain import model_size


METHODS = ("dense", "longer", "frozen", "low rank", "longer plain")  # of a sweep
CHECKS = 6  # validations in a run


@dataclass(frozen=True)
class Plan:
    """What every run of a comparison shares."""

    model: str
    context: int
    horizon: int
    steps: int
    batch: int
    share: float  # of the dense values that the other methods end with
    validated: int  # windows of the validation split, evenly spaced


def train(plan: Plan, splits: Splits, method: str, rate: float, seed: int) -> dict[str, Any]:
    """Adam with one cycle of its rate, as PatchTST's own on ETTm2; what a table needs, in plain numbers."""
    torch.manual_seed(seed)
    dense: Any = make_model(plan.model, plan.context, plan.horizon)
    values = values_of(dense)
    model, make_updater = METHODS_OF[method](plan, dense)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    after = make_updater(optimizer)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=plan.steps)
    every = max(1, plan.steps // CHECKS)
    held_out = thinned(splits.validation, plan.validated)
    best, curve, began = None, [], time.process_time()
    for step, batch in zip(range(1, plan.steps + 1), batches(splits.train, plan.batch, seed)):  # noqa: B905
        forecast = model(past_values=batch["past_values"]).prediction_outputs
        F.mse_loss(forecast, batch["future_values"]).backward()
        optimizer.step()
        after()
        schedule.step()
        optimizer.zero_grad()
        if step % every == 0:
            curve.append([step, errors(model, held_out)["mse"]])
            # Before its last cut a model is not yet of the size that is compared.
            if small_enough(model, plan) and (best is None or curve[-1][1] < best[0]):
                best = curve[-1][1], copy.deepcopy(model), step
    if best is None:
        raise RuntimeError(f"steps: a check must come after the last cut, got {plan.steps}; give more steps.")
    seconds = time.process_time() - began
    found = {"validation": best[0], "best_step": best[2], "curve": curve}
    return {**found, **errors(best[1], splits.test), **size_of(best[1], values), "seconds": round(seconds, 1)}


def ranks_for(plan: Plan, dense: nn.Module) -> dict[str, int]:
    """The ranks by which every layer holds the same share of its values, and the model `plan.share` of its own."""
    shapes = {n: m.weight.shape for n, m in dense.named_modules() if re.fullmatch(TARGETS[plan.model], n)}  # type: ignore[union-attr]
    each = 1 - (1 - plan.share) * values_of(dense) / sum(rows * cols for rows, cols in shapes.values())  # type: ignore[misc]
    return {n: max(1, int(each * rows * cols / (rows + cols))) for n, (rows, cols) in shapes.items()}  # type: ignore[misc]


def as_dense(plan: Plan, dense: nn.Module) -> Any:
    return dense, lambda optimizer: lambda: None


def low_rank(plan: Plan, dense: nn.Module) -> Any:
    """Plain W = A B from the first step on."""
    for name, rank in ranks_for(plan, dense).items():
        dense.set_submodule(name, LowRank(dense.get_submodule(name), rank))  # type: ignore[arg-type]
    return as_dense(plan, dense)


def oialr(plan: Plan, dense: Any, **fields: Any) -> Any:
    """Full rank for three tenths of the run, as the README has it, then the very ranks of W = A B, in one cut."""
    fields |= {"target_modules": TARGETS[plan.model], "rank_pattern": ranks_for(plan, dense), "min_rank": 0.0}
    model = get_peft_model(dense, OIALRConfig(train_rest=True, delay=0.3, sigma_cutoff=0.0, **fields))
    return model, lambda optimizer: OIALRUpdater(model, optimizer, total_steps=plan.steps).step


METHODS_OF: dict[str, Callable[[Plan, nn.Module], Any]] = {
    "dense": as_dense,
    "longer": lambda *given: oialr(*given, bases="longer"),
    "frozen": lambda *given: oialr(*given, bases="frozen"),
    "longer plain": lambda *given: oialr(*given, bases="longer", activation_aware=False),
    "frozen plain": lambda *given: oialr(*given, bases="frozen", activation_aware=False),
    "low rank": low_rank,
}


def small_enough(model: Any, plan: Plan) -> bool:
    """Whether a model that gets smaller has arrived."""
    return not hasattr(model, "peft_config") or model_size(model).share <= plan.share


def batches(windows: Dataset, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Shuffled epochs without end; the last, incomplete batch of each is left out."""
    if len(windows) < size:
        raise ValueError(f"batch: at most the {len(windows)} training windows, got {size}; lower it.")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(windows), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield windows[order[start : start + size]]


def thinned(windows: Dataset, count: int) -> Dataset:
    """At most `count` windows, evenly spaced."""
    return windows.select(range(0, len(windows), max(1, -(-len(windows) // count))))


def errors(model: Any, windows: Dataset) -> dict[str, float]:
    """Mean squared and mean absolute error over all elements of the windows, normalised units."""
    forecast: Forecaster = lambda past: model(past_values=past).prediction_outputs  # noqa: E731
    model.eval()
    found = errors_of({"": forecast}, windows, batch_size=128)[""]
    model.train()
    return found
