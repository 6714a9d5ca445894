"""The maths of OIALR: tensors in, tensors out. No torch.nn, no PEFT, no torch.distributed."""

from .activations import Seen, cut_by_activations, second_moment, seen_spectrum
from .change import BasisChange, Transport
from .cost import cheapest_order, forward_multiplications, rebuild
from .draw import draw
from .factors import Factors, factor_shapes, factored_size, orthonormality_error, stored_size, working_dtype
from .orthogonal import mixing, orthogonalise, polar, similarity, stability
from .precision import full_precision
from .residual import HELD, Directions, leading_directions, probe_bases, same
from .rotation import LinAlgError, Rotation, decompose, rotate, rotate_lowrank, spectrum
from .sketch import PROBES, sketch, sketched_stability


__all__ = [
    "HELD",
    "PROBES",
    "BasisChange",
    "Directions",
    "Factors",
    "LinAlgError",
    "Rotation",
    "Seen",
    "Transport",
    "cheapest_order",
    "cut_by_activations",
    "decompose",
    "draw",
    "factor_shapes",
    "factored_size",
    "forward_multiplications",
    "full_precision",
    "leading_directions",
    "mixing",
    "orthogonalise",
    "orthonormality_error",
    "polar",
    "probe_bases",
    "rebuild",
    "rotate",
    "rotate_lowrank",
    "same",
    "second_moment",
    "seen_spectrum",
    "similarity",
    "sketch",
    "sketched_stability",
    "spectrum",
    "stability",
    "stored_size",
    "working_dtype",
]
