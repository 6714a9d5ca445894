"""Averages of a model's weights (EMA, SWA) across changes of the bases.

The average of sigmas is the average of weights only while the bases stay: after an update sigma has other coordinates,
fewer of them after a cut. So an average moves with the model. In the new bases its weight W̄ has the sigma
u'ᵀ W̄ vh'ᵀ, which is exact for a rotation; a cut keeps of W̄ what lies in the bases that are kept, as it does of W.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..compat.resize import resize_parameter
from ..errors import OIALRWarning
from ..layers import OIALRLayer, oialr_layers
from ..linalg import Factors
from ..missed_update import UpdateWatch


NOT_FOLLOWED = (
    "A copy of this model changes although no optimizer trains it, so it seems to be an average of its weights "
    "(AveragedModel, EMA). This basis update turns the factors that were averaged, and from now on the average is "
    "wrong. Call `updater.follow(average)` once, before the first update (the updater of the Trainer's callback is "
    "`callback.updater`)."
)


class Averages:
    """The averages that follow the layers of one model, and a look-out for those that do not."""

    def __init__(self, model: nn.Module, layers: Sequence[tuple[str, OIALRLayer, str]], watch: UpdateWatch | None):
        self._model, self._layers, self._watch = weakref.ref(model), layers, watch
        self._followers: list[_Copy | _Tensors] = []
        self._written: weakref.WeakKeyDictionary[OIALRLayer, int] = weakref.WeakKeyDictionary()

    def follow(self, average: Any) -> None:
        model = self._model()
        assert model is not None
        if isinstance(average, nn.Module):
            self._followers.append(_Copy(average, self._layers))
        else:
            self._followers.append(_Tensors(average, model, self._layers))

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Around an update of the layers: what follows them is in their old bases before and in the new ones after."""
        if not self._followers:
            yield
            return
        before = [_bases(layer, adapter) for _, layer, adapter in self._layers]
        yield
        for index, (_, layer, adapter) in enumerate(self._layers):
            after = _bases(layer, adapter)
            if after is not None and not _same(before[index], after):
                for follower in self._followers:
                    follower.move(index, layer, adapter, before[index], after)

    def warn_of_others(self, *, update: bool) -> None:
        """Warn before an `update` if a copy of the model that does not follow is being averaged into.

        Such a copy changes although no optimizer trains it. To be called after every step, so that changes are seen.
        """
        if self._watch is None or not self._watch.copies:
            return
        followed = {layer for follower in self._followers for layer in follower.layers}
        adapter = self._layers[0][2]
        for copy in set(self._watch.copies) - followed:
            if not copy.holds(adapter):
                continue
            if copy not in self._written:
                self._note(copy)
                copy.register_load_state_dict_post_hook(lambda layer, _: self._note(layer))  # a load is no average
            elif update and _times_written(copy, adapter) > self._written[copy]:
                self._watch.copies.discard(copy)
                warnings.warn(NOT_FOLLOWED, OIALRWarning, stacklevel=4)

    def _note(self, copy: Any) -> None:
        adapter = self._layers[0][2]
        if copy.holds(adapter):
            self._written[copy] = _times_written(copy, adapter)


class _Copy:
    """An average that is a copy of the whole model."""

    def __init__(self, average: nn.Module, layers: Sequence[tuple[str, OIALRLayer, str]]) -> None:
        adapter = layers[0][2]
        self.layers = [layer for _, layer in oialr_layers(average) if layer.holds(adapter)]
        shapes = [layer.matrix_shape for layer in self.layers], [layer.matrix_shape for _, layer, _ in layers]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{type(average).__name__} holds {len(shapes[0])} OIALR layers of the adapter {adapter!r}, the model "
                f"{len(shapes[1])}; the average must be a copy of the model, made after the adapter was."
            )

    def move(self, index: int, layer: OIALRLayer, adapter: str, before: Factors | None, after: Factors) -> None:
        copy = self.layers[index]
        sigma = _in_bases(copy.matrix(adapter), before, after)
        copy.match_rank(adapter, layer.rank(adapter))
        with torch.no_grad():
            for held, new in zip(copy.factors(adapter), Factors(after.u, sigma, after.vh), strict=True):
                held.copy_(new)


class _Tensors:
    """An average that is a list of tensors, in the order of the model's parameters: all, or those that train."""

    layers: Sequence[OIALRLayer] = ()

    def __init__(self, average: Any, model: nn.Module, layers: Sequence[tuple[str, OIALRLayer, str]]) -> None:
        self._average = average
        count, everything = len(self._tensors()), list(model.parameters())
        lists = [everything, [p for p in everything if p.requires_grad]]
        held = next((parameters for parameters in lists if len(parameters) == count), None)
        if held is None:
            raise ValueError(
                f"The average holds {count} tensors, the model {len(lists[0])} parameters of which {len(lists[1])} "
                "train; it must hold one for each of either, in their order."
            )
        places = {id(parameter): place for place, parameter in enumerate(held)}
        self._places = [places[id(layer.parameter(adapter))] for _, layer, adapter in layers]

    def _tensors(self) -> list[torch.Tensor]:
        return list(getattr(self._average, "shadow_params", self._average))  # diffusers' EMAModel replaces its list

    def move(self, index: int, layer: OIALRLayer, adapter: str, before: Factors | None, after: Factors) -> None:
        tensor: Any = self._tensors()[self._places[index]]
        matrix = tensor.detach() if before is not None else tensor.detach().reshape(layer.matrix_shape)
        resize_parameter(tensor, _in_bases(matrix, before, after).to(tensor.device))


def _bases(layer: OIALRLayer, adapter: str) -> Factors | None:
    return layer.factors(adapter) if layer.is_factored(adapter) else None


def _same(before: Factors | None, after: Factors) -> bool:
    return before is not None and before.u is after.u


def _in_bases(matrix: torch.Tensor, before: Factors | None, after: Factors) -> torch.Tensor:
    """The sigma of an average in the bases `after`; `matrix` is its sigma in those `before`, or its dense weight."""
    left, right = after.u.mT, after.vh.mT
    if before is not None:
        left, right = left @ before.u, before.vh @ right
    return (left @ matrix.to(device=left.device, dtype=left.dtype) @ right).to(matrix.dtype)


def _times_written(layer: OIALRLayer, adapter: str) -> int:
    """How often the adapter's parameter was written to in place, as autograd counts it."""
    return layer.parameter(adapter)._version
