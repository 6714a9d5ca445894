"""The decisions of a run, as small frozen objects made from the config: when, how far, which ranks."""

from .ranks import LayerFacts, RankRule, floor_rank, select_rank
from .schedule import Schedule


__all__ = ["LayerFacts", "RankRule", "Schedule", "floor_rank", "select_rank"]
