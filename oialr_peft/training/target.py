"""`target_size` in a run: whether the model can get there, said before step 1, and whether it did."""

from __future__ import annotations

import math

from torch import nn

from ..config import OIALRConfig
from ..linalg import stored_size
from ..plain import ModelSize, model_size
from ..policy import Policies, TargetSize, policies_of
from ..tuner.rules import initial_rank
from ..weights import Weights


TOLERANCE = 0.01  # of the size that was asked for


def policies_for(
    model: nn.Module, config: OIALRConfig, weights: Weights, total_steps: int | None
) -> tuple[Policies, ModelSize]:
    """The decisions of a run, and the size of the model.

    Raises:
        ValueError: the size cannot be reached; it names the least one, and what makes it up.
    """
    size = model_size(model)
    policies = policies_of(config, total_steps, size.rest.values)
    if not isinstance(policies.ranks, TargetSize):
        return policies, size
    if total_steps is not None and policies.schedule.first > total_steps:
        raise ValueError(
            f"`target_size={config.target_size}` cannot be reached: this run ends at optimizer step {total_steps}, "
            f"before the first update at step {policies.schedule.first}. Lower `delay` or `update_interval`, or train "
            "longer."
        )
    _refuse_below_floor(policies.ranks, size, weights, config)
    return policies, size


def _refuse_below_floor(rule: TargetSize, size: ModelSize, weights: Weights, config: OIALRConfig) -> None:
    facts = {name: weight.facts for name, weight in weights.items()}
    layers = rule.floor(facts)
    floor, dense = size.holding(layers).values, size.dense.values
    if floor <= rule.values(facts):
        return
    kept = [name for name, values in layers.items() if values == math.prod(facts[name].shape)]
    unadapted = f", {len(kept)} of them no smaller than dense, first '{kept[0]}'" if kept else ""
    ways = ["ask for a larger `target_size`", "name more layers with `target_modules`"]
    if size.embeddings.values and not config.embeddings:
        ways.insert(1, "`embeddings=True`, unless they are tied")
    if sum(stored_size(fact.shape, 1) for fact in facts.values()) < sum(layers.values()):
        ways.insert(1, f"lower `min_rank` (now {rule.min_rank:g}) or `rank_multiple` (now {rule.multiple})")
    raise ValueError(
        f"`target_size={rule.share}` of {dense:,} dense parameters is {rule.values(facts):,}, below the floor of "
        f"{floor:,} ({math.ceil(1000 * floor / dense) / 1000:.1%}): embeddings {size.embeddings.values:,}, everything "
        f"else that is not factorised {size.other.values:,}, and {len(layers)} layers at their lowest ranks "
        f"{sum(layers.values()):,}{unadapted}. Way out: {', '.join(ways[:-1])}, or {ways[-1]}."
    )


def starts_below(size: ModelSize, config: OIALRConfig, weights: Weights) -> str | None:
    """The ranks that a run starts with leave the model smaller than it is to become."""
    if config.target_size is None:
        return None
    ranks = {n: w.rank if w.is_factored else initial_rank(n, w.full_rank, config) for n, w in weights.items()}
    values = size.holding({name: stored_size(w.matrix_shape, ranks[name]) for name, w in weights.items()}).values
    if values >= (1 - TOLERANCE) * config.target_size * size.dense.values:
        return None
    return (
        f"With the ranks that it starts with, the model has {values / size.dense.values:.1%} of its dense size, below "
        f"`target_size={config.target_size}`: nothing will be cut. Raise `r` or leave it out, or lower `target_size`."
    )


def missed(size: ModelSize, weights: Weights, policies: Policies, step: int) -> str | None:
    """The run ended above the size that was asked for."""
    if not isinstance(policies.ranks, TargetSize):
        return None
    share = size.with_ranks(weights).share
    if share <= (1 + TOLERANCE) * policies.ranks.share:
        return None
    return (
        f"This run ended at step {step} with {share:.1%} of the dense size instead of `target_size="
        f"{policies.ranks.share}`; the last cut was to come at step {policies.ranks.approach.last}. Train on, or give "
        "the run its true length, so that the cuts come in time."
    )
