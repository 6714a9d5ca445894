"""The maths of OIALR: tensors in, tensors out. No torch.nn, no PEFT, no torch.distributed."""

from .change import BasisChange, Transport
from .cost import cheapest_order, forward_multiplications, rebuild
from .factors import Factors, factor_shapes, factored_size, orthonormality_error, stored_size, working_dtype
from .orthogonal import orthogonalise, polar, stability
from .residual import HELD, Directions, leading_directions, probe_bases, same
from .rotation import Rotation, decompose, rotate, rotate_lowrank, spectrum
from .sketch import PROBES, sketch, sketched_stability


__all__ = [
    "HELD",
    "PROBES",
    "BasisChange",
    "Directions",
    "Factors",
    "Rotation",
    "Transport",
    "cheapest_order",
    "decompose",
    "factor_shapes",
    "factored_size",
    "forward_multiplications",
    "leading_directions",
    "orthogonalise",
    "orthonormality_error",
    "polar",
    "probe_bases",
    "rebuild",
    "rotate",
    "rotate_lowrank",
    "same",
    "sketch",
    "sketched_stability",
    "spectrum",
    "stability",
    "stored_size",
    "working_dtype",
]
