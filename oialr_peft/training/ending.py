"""How a run ended, in words: each function returns sentences, or None where all is well."""

from __future__ import annotations

import math

from ..config import OIALRConfig
from ..plain import ModelSize
from ..units import ends
from ..weights import Weights


def afterwards(weights: Weights, config: OIALRConfig, steps: int) -> dict[str, str | None]:
    """{kind: what should be said of a run at its end}."""
    return {"no smaller": no_smaller(weights, config), "still dense": still_dense(weights, config, steps)}


def no_smaller(weights: Weights, config: OIALRConfig) -> str | None:
    """Half of the layers or more end no smaller than dense though cuts were wanted, so little or nothing is saved."""
    large = [name for name, w in weights.items() if w.is_factored and not w.pair_is_smaller]
    wanted = config.sigma_cutoff and config.max_cut and config.target_size is None
    if 2 * len(large) < len(weights) or not large or not wanted:
        return None
    full = sum(weights[name].rank == weights[name].full_rank for name in large)
    return (
        f"{len(large)} of {len(weights)} OIALR layers end no smaller than dense ones, {ends(large)}, {full} of them "
        "at full rank. Two factors are smaller than a square weight only below half its rank. Ask for a size, "
        f"`target_size=0.6` for instance, raise `sigma_cutoff` (now {config.sigma_cutoff:g}), train longer, or start "
        "lower, with `r=0.25`."
    )


def still_dense(weights: Weights, config: OIALRConfig, step: int) -> str | None:
    """The run ended while layers waited for their bases, which is before the half of the length that it was given."""
    dense = [name for name, weight in weights.items() if not weight.is_factored]
    if config.delay != "auto" or not dense:
        return None
    return (
        f"This run ended at optimizer step {step} with {len(dense)} of {len(weights)} layers still dense, "
        f"{ends(dense)}: their bases had not settled (`delay='auto'`), or no SVD of them could be had. At the first "
        "update in the second half of the run all are factorised: train on, or give the run its true length."
    )


def higher_ranks(before: dict[str, int | None], weights: Weights, checkpoint: str | None) -> str | None:
    """The best model was loaded at the end, and it is of an earlier phase than the last; None stands for dense."""
    now = rank_or_dense(weights)
    dense = [name for name, rank in now.items() if rank is None and before[name] is not None]
    higher = [name for name, rank in now.items() if rank is not None and rank > (before[name] or rank)]
    if not dense and not higher:
        return None
    what = (
        f"{len(dense)} of {len(now)} layers are dense again, {ends(dense)}"
        if dense
        else f"{len(higher)} of {len(now)} layers have a higher rank again, first '{higher[0]}': {now[higher[0]]} "
        f"instead of {before[higher[0]]}"
    )
    return (
        f"`load_best_model_at_end` brought back {checkpoint}, which is of an earlier phase than the end of training: "
        f"{what}. What is saved now is larger than what training ended with. To have the last model, set "
        "`load_best_model_at_end=False`; to choose among the smaller ones, start evaluating after the cuts "
        "(`eval_delay`)."
    )


def rank_or_dense(weights: Weights) -> dict[str, int | None]:
    """{name: rank, or None while the layer is dense}."""
    return {name: weight.rank if weight.is_factored else None for name, weight in weights.items()}


def summary(weights: Weights, size: ModelSize, steps: int) -> str:
    """How a run ended, in three sentences."""
    ranks, full = [w.rank for w in weights.values()], [w.full_rank for w in weights.values()]
    dense = sum(math.prod(w.matrix_shape) for w in weights.values())
    held = sum(weight.held_size for weight in weights.values())
    trained = sum(w.trainable_size for w in weights.values())
    return (
        f"OIALR after {steps} optimizer steps: {sum(r < f for r, f in zip(ranks, full, strict=True))} of "
        f"{len(ranks)} layers are below their full rank, mean rank {sum(ranks) / len(ranks):.4g} of "
        f"{sum(full) / len(full):.4g}. Of their {dense:,} dense parameters the adapter holds {held / dense:.0%} and "
        f"{trained / dense:.0%} train. `save_compressed` would write {size}."
    )


def residual_summary(weights: Weights, steps: int) -> str:
    """As `summary`, of adapters that add to their base."""
    dense = sum(math.prod(w.matrix_shape) for w in weights.values())
    trained, held = sum(w.trainable_size for w in weights.values()), sum(w.held_size for w in weights.values())
    return (
        f"OIALR after {steps} optimizer steps: {trained:,} values trained beside {len(weights)} layers of {dense:,} "
        f"({trained / dense:.2%}); the adapter holds {held:,}. The base is as it was, and nothing got smaller."
    )
