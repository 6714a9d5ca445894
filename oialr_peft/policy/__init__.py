"""The decisions of a run, as small frozen objects made from the config: when, how far, which ranks."""

from .ranks import RankRule, floor_rank, select_rank
from .schedule import Schedule


__all__ = ["RankRule", "Schedule", "floor_rank", "select_rank"]
