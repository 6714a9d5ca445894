"""The decisions of a run, made from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .bases import Bases
from .ranks import RankRule
from .schedule import LONGEST_INTERVAL, NEVER, Approach, Schedule, default_interval, steps_of
from .settling import Settling
from .step_size import StepSize
from .target import TargetSize


if TYPE_CHECKING:
    from ..config import OIALRConfig


# Shares of the run by which `target_size` is reached, so that the rest of it makes up for the cuts. What is trained
# already can go early, what is still to settle goes late (DIARY: When a size is to be reached).
CUT_BY, CUT_BY_AFTER_DELAY = 1 / 3, 2 / 3


class Policies(NamedTuple):
    """All decisions of one run, in optimizer steps."""

    schedule: Schedule
    ranks: RankRule | TargetSize
    bases: Bases
    step_size: StepSize
    settling: Settling | None = None  # where a layer's own basis says when it is factorised


def policies_of(config: OIALRConfig, total_steps: int | None, rest: int = 0) -> Policies:
    """Every decision of a run of `total_steps` optimizer steps; None where its length is not known.

    `rest`: how many values the model holds beside the layers that are factorised, which `target_size` has to know.

    Raises:
        ValueError: a field is a share of the run, or `target_size` is to be reached, and its length is not known.
    """
    if config.residual:
        return Policies(NEVER, _ranks(config, NEVER, total_steps, rest), Bases(), StepSize(config.lr_scale))
    delay = 0 if config.delay == "auto" else steps_of("delay", config.delay, total_steps)
    interval = config.update_interval
    interval = default_interval(delay, total_steps) if interval is None else interval
    interval = steps_of("update_interval", interval, total_steps)
    settling = _settling(config, total_steps, interval)
    freeze = None if config.freeze_bases is None else steps_of("freeze_bases", config.freeze_bases, total_steps)
    layer_step = 1.0 if config.target_size is not None else config.layer_step
    schedule = Schedule(delay if settling is None else interval, interval, layer_step)
    ranks = _ranks(config, schedule, total_steps, rest)
    return Policies(schedule, ranks, Bases(config.bases, freeze), StepSize(config.lr_scale), settling)


def _settling(config: OIALRConfig, total_steps: int | None, interval: int) -> Settling | None:
    if config.delay != "auto":
        return None
    if total_steps is None:
        raise ValueError(
            "`delay='auto'` lets layers go between a tenth and a half of the run, whose length is not known here. "
            "Pass `OIALRUpdater(model, optimizer, total_steps=...)`, or give `delay` in optimizer steps."
        )
    return Settling.over(total_steps, interval)


def _ranks(config: OIALRConfig, schedule: Schedule, total_steps: int | None, rest: int) -> RankRule | TargetSize:
    if config.target_size is None:
        cuts = config.sigma_cutoff, config.max_cut, config.min_rank, config.rank_multiple
        return RankRule(*cuts, config.rank_rule)
    if total_steps is None:
        raise ValueError(
            f"`target_size={config.target_size}` is approached over the run, whose length is not known here. "
            "Pass `OIALRUpdater(model, optimizer, total_steps=...)`."
        )
    last = (CUT_BY_AFTER_DELAY if config.delay else CUT_BY) * total_steps
    approach = Approach(schedule.last_by(round(last)), schedule.update_interval)
    return TargetSize(config.target_size, rest, approach, config.min_rank, config.rank_multiple)


def steps_to_first_update(config: OIALRConfig) -> int:
    """After how many optimizer steps one is missed, whatever the length of the run; generous for shares of it."""
    if config.residual:
        return NEVER.first
    given = (config.delay, LONGEST_INTERVAL if config.update_interval is None else config.update_interval)
    return sum(steps if isinstance(steps, int) else LONGEST_INTERVAL for steps in given)
