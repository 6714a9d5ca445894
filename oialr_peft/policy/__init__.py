"""The decisions of a run, as small frozen objects made from the config: when, how far, which ranks, which bases."""

from typing import NamedTuple

from .bases import Bases
from .ranks import LayerFacts, RankRule, floor_rank, select_rank
from .schedule import LONGEST_INTERVAL, Approach, Schedule, default_interval, steps_of
from .step_size import StepSize
from .target import TargetSize, stored_size


class Policies(NamedTuple):
    """All decisions of one run, in optimizer steps."""

    schedule: Schedule
    ranks: RankRule | TargetSize
    bases: Bases
    step_size: StepSize


__all__ = [
    "LONGEST_INTERVAL",
    "Approach",
    "Bases",
    "LayerFacts",
    "Policies",
    "RankRule",
    "Schedule",
    "StepSize",
    "TargetSize",
    "default_interval",
    "floor_rank",
    "select_rank",
    "steps_of",
    "stored_size",
]
