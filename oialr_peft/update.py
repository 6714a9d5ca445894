"""One update of the bases, top to bottom (paper, algorithm 2)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

from .config import OIALRConfig
from .errors import OIALRWarning
from .layers import OIALRLayer
from .linalg import Rotation, decompose
from .memory import release_memory
from .moments import MomentCarrier
from .policy import select_rank
from .tuner.rules import initial_rank
from .update_report import UpdateReport
from .workers import Piece, Processes


def update_bases(
    layers: Sequence[tuple[str, OIALRLayer, str]],
    config: OIALRConfig,
    carrier: MomentCarrier,
    processes: Processes,
    *,
    step: int,
    update_number: int,
) -> UpdateReport:
    """Rotate the bases of the layers that are due, cut them, and carry the optimizer's moments along.

    Layers that are still dense are factorised first; `layers` are (name, layer, adapter) in model order. A few layers
    at a time, so that the peak never holds two copies of the weights. A layer whose SVD cannot be had is left as it
    is, with one warning.
    """
    began = time.perf_counter()
    due = {name for name, *_ in layers[-config.schedule.layers_due(update_number, len(layers)) :]}
    work = {name: (layer, adapter) for name, layer, adapter in layers if name in due or not layer.is_factored(adapter)}
    pieces = [_piece(name, layer, adapter, config, cut=name in due) for name, (layer, adapter) in work.items()]
    factorised, changed, dropped, skipped = False, {}, {}, []
    for piece, rotation in processes.rotations(pieces):
        if rotation is None:
            skipped.append(piece.name)
            continue
        layer, adapter = work[piece.name]
        parameter, before, dense = layer.parameter(adapter), layer.rank(adapter), not layer.is_factored(adapter)
        lost = rotation.dropped_energy(layer.matrix(adapter))
        layer.apply_rotation(adapter, rotation)
        carrier.transport(parameter, rotation, was_dense=dense)
        factorised |= dense
        if rotation.rank < before:
            changed[piece.name] = [before, rotation.rank]
            dropped[piece.name] = lost
    _warn_skipped(skipped, step)
    release_memory()
    return UpdateReport(
        step=step,
        update_number=update_number,
        factorised=factorised,
        seconds=time.perf_counter() - began,
        ranks={name: layer.rank(adapter) for name, layer, adapter in layers},
        full_ranks={name: layer.full_rank for name, layer, _ in layers},
        changed=changed,
        dropped=dropped,
        skipped=skipped,
        trainable_parameters=sum(layer.trainable_size(adapter) for _, layer, adapter in layers),
    )


def _piece(name: str, layer: OIALRLayer, adapter: str, config: OIALRConfig, *, cut: bool) -> Piece:
    """The matrix of a layer and how its rotation is computed: decomposed, and cut where the layer is due."""
    matrix, dense = layer.matrix(adapter), not layer.is_factored(adapter)

    def compute() -> Rotation | None:
        rank = initial_rank(name, layer.full_rank, config) if dense else layer.rank(adapter)
        rotation = decompose(matrix, rank, config.init if dense else "svd")
        if rotation is None or not cut:
            return rotation
        return rotation.cut(select_rank(rotation.singular_values, layer.full_rank, config.rank_rule))

    return Piece(name, tuple(matrix.shape), matrix.dtype, matrix.device, compute)


def _warn_skipped(skipped: list[str], step: int) -> None:
    if skipped:
        warnings.warn(
            f"OIALR update at step {step}: no SVD for {', '.join(skipped[:5])}{', ...' if len(skipped) > 5 else ''} "
            "(non-finite values, or no driver converged). These layers stay as they are until the next update; look "
            "at the loss and the gradients if this repeats.",
            OIALRWarning,
            stacklevel=4,
        )
