"""The maths of OIALR: tensors in, tensors out. No torch.nn, no PEFT, no torch.distributed."""

from .contraction import contract
from .factors import Factors, orthonormality_error, working_dtype
from .rank import RankRule, select_rank
from .rotation import Rotation, decompose, rotate, rotate_lowrank


__all__ = [
    "Factors",
    "RankRule",
    "Rotation",
    "contract",
    "decompose",
    "orthonormality_error",
    "rotate",
    "rotate_lowrank",
    "select_rank",
    "working_dtype",
]
