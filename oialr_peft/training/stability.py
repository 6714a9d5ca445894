"""StabilityCallback: does the basis of each weight settle, and before its mixing? (paper, section 3)"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import TrainerCallback

from ..errors import tell
from ..files.draft import replace_file
from ..kinds.table import kind_of
from ..layer import OIALRLayer, name_in_base
from ..linalg import LinAlgError, mixing, polar, similarity, stability
from ..weights import AdaptedWeight
from ..workers.sharding import is_sharded


Weight = AdaptedWeight | torch.Tensor
Shape = tuple[int, ...]


class StabilityCallback(TrainerCallback):
    """Measures how far basis and mixing of every weight moved between two checkpoints, in the Trainer, for any model.

    Of the basis it is trace(Q₁ᵀ Q₂) / n for the polar factors Q = U Vᵀ, in the file as `stability`, the mean over the
    layers as `mean`. Of the mixing, R of W = Q R, it is 1 - ‖R₁ - R₂‖ / (‖R₁‖ + ‖R₂‖), as `mixing` and `mixing_mean`;
    the authors name the Euclidean distance and no formula. Each is 1 where nothing moved. Linear layers and
    convolutions count whose weight trains, dense or with an OIALR adapter; of `nn.MultiheadAttention` its output
    projection. The factors of other adapters, such as LoRA's, count one by one. The first checkpoint is the model at
    the start. `oialr_peft.report.plots.plot_stability` draws the file.

    Args:
        path: JSON file that is written at the start, anew for a new run, and at every checkpoint; its folder is made.
        every: optimizer steps between two checkpoints. `None` (default): the end of each epoch. An SVD and a QR of
            every weight are due at each, so do not go below a few hundred steps with large models.

    A run that is resumed goes on with the file's earlier figures; what lies between the last checkpoint before and the
    start is not measured. Only the first process measures. A weight that is not finite is left out, with a warning,
    and a file that cannot be written later on is no reason to stop training.

    Raises:
        ValueError: `every` is below 1, the model trains no such layer, or the file to go on with is damaged.
        OSError: the file cannot be written.
        NotImplementedError: the weights are sharded over processes (FSDP2).
    """

    def __init__(self, path: str | os.PathLike, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"`every` counts optimizer steps and must be at least 1; got {every}. None: each epoch.")
        self.path, self.every = Path(path).expanduser().absolute(), every
        self._points: list[dict[str, Any]] = []
        self._parts: dict[str, Parts] = {}
        self._warned: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        weights = _weights(kwargs["model"])
        if not weights:
            raise ValueError(
                f"{type(kwargs['model']).__name__} trains no linear layer and no convolution, so no basis can be "
                "measured; leave StabilityCallback away."
            )
        self._points = _points_until(state.global_step, self.path) if state.global_step else []
        self._parts = self._measured(weights)
        self._write()
        if self.every and state.global_step // self.every == state.max_steps // self.every:
            self._warn_once(
                "nothing to measure",
                f"StabilityCallback has nothing to measure: the run ends at step {state.max_steps}, before the next "
                f"multiple of `every={self.every}`. Give it a smaller one.",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._measure(state, kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every is None:
            self._measure(state, kwargs["model"])

    def _measure(self, state: Any, model: nn.Module) -> None:
        if not state.is_world_process_zero:
            return
        before, self._parts = self._parts, self._measured(_weights(model))
        both = [name for name in self._parts if name in before]  # others train since, or were not finite
        if not both:
            return
        bases = {name: stability(before[name].basis, self._parts[name].basis) for name in both}
        mixings = {name: similarity(before[name].mixing, self._parts[name].mixing) for name in both}
        means = {"mean": sum(bases.values()) / len(bases), "mixing_mean": sum(mixings.values()) / len(mixings)}
        point = {"step": state.global_step, "epoch": state.epoch, **means}
        self._points.append({**point, "stability": bases, "mixing": mixings})
        try:
            self._write()
        except OSError as error:
            self._warn_once("unwritten", f"{error} Training goes on; the next checkpoint tries again.")

    def _measured(self, weights: dict[str, tuple[Weight, Shape]]) -> dict[str, Parts]:
        """Of each weight that is finite, by the name of its layer."""
        measured = {}
        for name, (weight, shape) in weights.items():
            if (parts := _parts_of(weight, shape)) is None:
                self._warn_once(name, f"The weight of '{name}' is not finite, or has no SVD: it is left out.")
            else:
                measured[name] = parts
        return measured

    def _write(self) -> None:
        try:
            replace_file(self.path, json.dumps({"points": self._points}, indent=1).encode())
        except OSError as error:
            why = f"The file of StabilityCallback, '{self.path}', cannot be written ({error})."
            raise OSError(f"{why} Free space on the disk, or give it another `path`.") from error

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            tell(message)


class Parts(NamedTuple):
    """What is compared of a weight, on the CPU."""

    basis: torch.Tensor  # U Vᵀ
    mixing: torch.Tensor  # R of W = Q R


def _points_until(step: int, path: Path) -> list[dict[str, Any]]:
    """What an earlier process measured of the run that goes on."""
    if not path.exists():
        return []
    try:
        return [point for point in json.loads(path.read_text(encoding="utf-8"))["points"] if point["step"] <= step]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"'{path}', with the earlier figures of this run, is no file of StabilityCallback, or damaged ({error}). "
            "Remove it, or give another `path`."
        ) from error


def _weights(model: nn.Module) -> dict[str, tuple[Weight, Shape]]:
    """{layer: its weight, and the shape of that as a matrix or several} of those that train, in the model's order."""
    found: dict[str, tuple[Weight, Shape]] = {}
    inside = "\0"
    for name, module in model.named_modules():
        if name.startswith(inside) or (held := _weight_of(module)) is None:
            continue
        inside, (weight, shape) = f"{name}.", held
        core = weight if isinstance(weight, torch.Tensor) else weight.core
        if is_sharded(core):
            raise NotImplementedError(
                "StabilityCallback needs whole weights, but FSDP2 shards them. Use one process or DDP."
            )
        if core.requires_grad:
            found[name_in_base(name)] = weight, shape
    return found


def _weight_of(module: Any) -> tuple[Weight, Shape] | None:
    if isinstance(module, OIALRLayer):
        weight = next((module.weights[name] for name in module.active_adapters if name in module.weights), None)
        return None if weight is None else (weight, module.matrix_shape)
    kind = kind_of(module)
    return None if kind is None or isinstance(module, nn.Embedding) else (module.weight, kind.matrix_shape(module))


@torch.no_grad()
def _parts_of(weight: Weight, shape: Shape) -> Parts | None:
    """None where it is not finite, or LAPACK finds no SVD."""
    plain = isinstance(weight, torch.Tensor)
    matrix = (weight.float() if plain else weight.dense(torch.float32)).reshape(shape)
    if not bool(torch.isfinite(matrix).all()):
        return None
    rank = None if plain or weight.base is not None else weight.rank
    try:
        return Parts(polar(matrix, rank).cpu(), mixing(matrix).cpu())
    except LinAlgError:
        return None
