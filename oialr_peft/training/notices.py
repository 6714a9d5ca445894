"""What a run should be told about itself on its way, in words: a sentence, or None where all is well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..config import OIALRConfig
from ..config_checks import given
from ..policy import Bases, Policies, Schedule
from ..tuner.rules import initial_rank
from ..units import ends
from ..update_report import UpdateReport
from ..weights import FACTORED, Weights


EARLY = 0.05  # share of a run; forecasters cut to a quarter at .1 end 5 % behind dense training, at .02 half
LARGE_DROP = 0.2  # share of a layer's energy (UpdateReport.dropped) in one cut; at the default cutoff it is below 0.01


def beforehand(
    config: OIALRConfig, weights: Weights, policies: Policies, total_steps: int | None
) -> dict[str, str | None]:
    """{kind: what should be said of a run before its first step}."""
    found = {"no effect": without_effect(config), "never cut": never_cut(weights, config.rank_multiple)}
    if config.residual:
        return found
    found["frozen already"] = frozen_already(config, weights)
    if total_steps is not None:
        found["too short"] = too_short(policies.schedule, list(weights), total_steps)
        found["early cut"] = early_cut(config, weights, policies.schedule, total_steps)
        found["not frozen"] = not_frozen(policies.schedule, policies.bases, total_steps)
    return found


def too_short(schedule: Schedule, names: Sequence[str], last: int) -> str | None:
    """A run of `last` optimizer steps ends before every layer came due for a cut."""
    first = schedule.first
    if last < first:
        return (
            f"This run ends at optimizer step {last}, before the first OIALR update at step {first}: nothing will be "
            "cut. Lower `delay` or `update_interval`, or train longer."
        )
    updates = (last - first) // schedule.update_interval + 1
    never = len(names) - schedule.layers_due(updates, len(names))
    if not never:
        return None
    needed = math.ceil(1 / schedule.layer_step - 1e-9)  # updates until all layers are due
    intervals = needed - 1 if schedule.delay else needed
    ways = [f"`layer_step={math.ceil(1000 / updates) / 1000:g}`"]
    if interval := (last - schedule.delay) // intervals:
        ways.insert(0, f"`update_interval={interval}`")
    return (
        f"This run ends at optimizer step {last}, after {updates} OIALR updates. Layers come due from the last to the "
        f"first, so {never} of {len(names)}, {ends(names[:never])}, never do and keep their rank. All would with "
        f"{' or with '.join(ways)}."
    )


def not_frozen(schedule: Schedule, bases: Bases, last: int) -> str | None:
    """Bases are to be frozen after the last update, which would have done it."""
    if bases.freeze_at is None or schedule.last_by(last) >= bases.freeze_at:
        return None
    return (
        f"`freeze_bases` is step {bases.freeze_at}, and the last update of this run of {last} steps, with which "
        f"bases freeze, is at step {schedule.last_by(last)}: they train to the end. Freeze them earlier, or update "
        "more often."
    )


def early_cut(config: OIALRConfig, weights: Weights, schedule: Schedule, last: int) -> str | None:
    """Weights that have hardly trained are taken to a rank for good."""
    dense = {name: weight.full_rank for name, weight in weights.items() if not weight.is_factored}
    cut = [name for name, full in dense.items() if initial_rank(name, full, config) < full]
    if config.delay == "auto" or not cut or schedule.delay >= EARLY * last:
        return None
    return (
        f"`delay` of {schedule.delay} steps in a run of {last} takes {len(cut)} layers to the rank of `r` when they "
        "have hardly trained, and what it leaves of their bases is all there is. Give `delay` a share of the run, "
        "0.2 to 0.5, or ask for a size: `target_size` cuts bit by bit. Of weights that are trained leave `delay` out."
    )


def frozen(weights: Weights, trained: frozenset[int]) -> dict[str, str]:
    """The optimizer steps, but not for this adapter or some of its layers, of which a cut would take all the same.

    `trained`: places of the weights that do train.
    """
    still = [name for place, name in enumerate(weights) if place not in trained]
    if not trained:
        adapter = next(iter(weights.values())).adapter
        return {
            "left out": f"The OIALR adapter {adapter!r} is frozen while its optimizer steps, so an update was left "
            "out, as all are while that is so. Make another updater for the adapter that trains now."
        }
    if still:
        return {
            "frozen": f"{len(still)} of {len(weights)} layers, first '{still[0]}', are frozen while others train, and "
            "updates cut them all the same, which changes their weights. Freeze layers once the last update was made, "
            "or keep them out of the adapter with `exclude_modules`."
        }
    return {}


def no_steps(optimizer: str) -> str:
    """A call that no step of the optimizer, and no gradient, came before."""
    return (
        f"`OIALRUpdater.step()` was called, but its {optimizer} has taken no step yet and there are no gradients; "
        "each such call counts as one step. In training call it after every `optimizer.step()`, with the optimizer "
        "that the updater was made with."
    )


def past_the_end(config: OIALRConfig, steps: int, total_steps: int | None) -> str | None:
    """The run is longer than it was said to be: of one epoch for instance, where it has several."""
    if total_steps is None or steps <= total_steps or config.residual:
        return None
    return (
        f"Training goes on after the `total_steps={total_steps}` that OIALRUpdater was given. Sizes, delays and "
        "intervals that are shares of the run were reckoned with it, so ranks fell early. Give it the steps of all "
        "epochs."
    )


def frozen_already(config: OIALRConfig, weights: Weights) -> str | None:
    """Bases that are to train, of weights that an earlier run left with frozen ones."""
    frozen = [name for name, weight in weights.items() if weight.form == FACTORED]
    if config.bases == "frozen" or config.freeze_bases is not None or not frozen:
        return None
    return (
        f"bases='{config.bases}', the default of `target_size`, has no effect on {len(frozen)} of {len(weights)} "
        f"layers, {ends(frozen)}: their bases were frozen when they were saved, and sigma alone trains on. If "
        "that is what you want, set bases='frozen'; else start from the dense weights (`merge_and_unload`)."
    )


def without_effect(config: OIALRConfig) -> str | None:
    """Fields that say how ranks fall or bases turn, in a mode where they do neither."""
    fields = ("update_interval", "rank_rule", "sigma_cutoff", "layer_step", "max_cut", "rank_multiple", "moments")
    if not config.residual or not (found := given(config, *fields)):
        return None
    values = ", ".join(f"`{name}={value!r}`" for name, value in found)
    return (
        f"{values} has no effect with `residual=True`: its ranks and bases stay as they are made, so there are no "
        "updates. Leave it out."
    )


def never_cut(weights: Weights, multiple: int) -> str | None:
    """Layers whose rank is no larger than `rank_multiple`."""
    held = [f"{name} (rank {weight.rank})" for name, weight in weights.items() if weight.rank <= multiple]
    if multiple == 1 or not held:
        return None
    return (
        f"`rank_multiple={multiple}` rounds ranks up to its multiples, so {len(held)} of {len(weights)} layers can "
        f"never be cut: {ends(held)}. Lower `rank_multiple` below their ranks, or leave them out with "
        "`exclude_modules`."
    )


def large_drop(report: UpdateReport, config: OIALRConfig) -> str | None:
    """A cut that took a large share of a weight; at factorisation to a chosen `r` that is no surprise."""
    large = {name: share for name, share in report.dropped.items() if share > LARGE_DROP}
    if not large or (report.factorised and (config.r is not None or config.rank_pattern)):
        return None
    worst = max(large, key=large.__getitem__)
    before, after = report.changed[worst]
    return (
        f"The OIALR update at step {report.step} dropped more than {LARGE_DROP:.0%} of the energy of "
        f"{len(large)} layers, most of '{worst}': {large[worst]:.0%}, rank {before} to {after}. {_ways(config)} Later "
        "cuts are in the logs as `oialr/max_dropped_energy`."
    )


def unseen(report: UpdateReport, names: Iterable[str]) -> str | None:
    """Layers that an update took to a given rank, and through which nothing went before that."""
    if not (found := [name for name in names if name in report.changed]):
        return None
    return (
        f"The OIALR update at step {report.step} chose by the weights alone what to keep of {len(found)} layers, "
        f"'{found[0]}' among them, although `activation_aware=True`: they had no part in the loss of the step "
        "before it, or `OIALRUpdater.step()` is not called after every optimizer step. If that is fine, set "
        "`activation_aware=False`."
    )


def _ways(config: OIALRConfig) -> str:
    """What asks for large cuts, and how to ask for less."""
    if config.target_size is not None:
        return f"`target_size={config.target_size}` asks for it. Update more often, train longer, or ask for more."
    if config.rank_rule == "optimal":
        return "rank_rule='optimal' takes it for noise. Use another rule where the loss does not come back."
    lower = f"Lower `sigma_cutoff` (now {config.sigma_cutoff:g}) or `max_cut` (now {config.max_cut:g})"
    if config.rank_rule == "energy":
        return f"{lower}."
    return (
        "`sigma_cutoff` is a share of the largest singular value, so one outlier makes all others look small. "
        f"{lower}, or use rank_rule='energy'."
    )
