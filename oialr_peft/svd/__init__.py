"""The maths of OIALR: tensors in, tensors out. No torch.nn, no PEFT, no torch.distributed."""

from .contraction import cheapest_order, forward_multiplications, rebuild
from .factors import Factors, factor_shapes, factored_size, orthonormality_error, two_factor_size, working_dtype
from .rank import RankRule, floor_rank, select_rank
from .rotation import Rotation, decompose, rotate, rotate_lowrank


__all__ = [
    "Factors",
    "RankRule",
    "Rotation",
    "cheapest_order",
    "decompose",
    "factor_shapes",
    "factored_size",
    "floor_rank",
    "forward_multiplications",
    "orthonormality_error",
    "rebuild",
    "rotate",
    "rotate_lowrank",
    "select_rank",
    "two_factor_size",
    "working_dtype",
]
