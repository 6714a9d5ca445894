"""The decisions of a run, as small frozen objects made from the config: when, how far, which ranks, which bases."""

from .bases import Bases
from .make import Policies, policies_of, steps_to_first_update
from .ranks import LayerFacts, RankRule, floor_rank, select_rank
from .schedule import Approach, Schedule, whole_steps
from .settling import Settling
from .step_size import StepSize
from .target import TargetSize


__all__ = [
    "Approach",
    "Bases",
    "LayerFacts",
    "Policies",
    "RankRule",
    "Schedule",
    "Settling",
    "StepSize",
    "TargetSize",
    "floor_rank",
    "policies_of",
    "select_rank",
    "steps_to_first_update",
    "whole_steps",
]
