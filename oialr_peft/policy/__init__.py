"""The decisions of a run, as small frozen objects made from the config: when, how far, which ranks, which bases."""

from typing import NamedTuple

from .bases import Bases
from .ranks import LayerFacts, RankRule, floor_rank, select_rank
from .schedule import LONGEST_INTERVAL, Schedule, default_interval, steps_of
from .step_size import StepSize


class Policies(NamedTuple):
    """All decisions of one run, in optimizer steps."""

    schedule: Schedule
    ranks: RankRule
    bases: Bases
    step_size: StepSize


__all__ = [
    "LONGEST_INTERVAL",
    "Bases",
    "LayerFacts",
    "Policies",
    "RankRule",
    "Schedule",
    "StepSize",
    "default_interval",
    "floor_rank",
    "select_rank",
    "steps_of",
]
