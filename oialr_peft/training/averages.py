"""Averages of a model's weights (EMA, SWA) across changes of the bases.

The average of sigmas is the average of weights only while the bases stay: after an update sigma has other coordinates,
fewer of them after a cut. So an average moves with the model. In the new bases its weight W̄ has the sigma
u'ᵀ W̄ vh'ᵀ, which is exact for a rotation; a cut keeps of W̄ what lies in the bases that are kept, as it does of W.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..compat.resize import resize_parameter
from ..compat.torch_ import writes
from ..errors import tell
from ..layer import weights_of
from ..linalg import BasisChange, Factors, Transport
from ..missed_update import UpdateWatch
from ..weights import AdaptedWeight


NOT_FOLLOWED = (
    "A copy of this model changes although no optimizer trains it, so it seems to be an average of its weights "
    "(AveragedModel, EMA). This basis update turns the factors that were averaged, and from now on the average is "
    "wrong. Call `updater.follow(average)` once, before the first update (the updater of the Trainer's callback is "
    "`callback.updater`)."
)


class Averages:
    """The averages that follow the weights of one model, and a look-out for those that do not."""

    def __init__(self, model: nn.Module, weights: Sequence[AdaptedWeight], watches: Sequence[UpdateWatch]) -> None:
        self._model, self._weights, self._watches = weakref.ref(model), weights, watches
        self._followers: list[_Copy | _Tensors] = []
        self._written: weakref.WeakKeyDictionary[AdaptedWeight, int] = weakref.WeakKeyDictionary()

    def follow(self, average: Any) -> None:
        model = self._model()
        assert model is not None, "the caller of this holds the updater of a model that is gone"
        if isinstance(average, nn.Module):
            self._followers.append(_Copy(average, self._weights))
        else:
            self._followers.append(_Tensors(average, model, self._weights))

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Around an update of the weights: what follows them is in the old bases before and in the new ones after."""
        if not self._followers:
            yield
            return
        before = [weight.factors for weight in self._weights]
        try:
            yield
        finally:  # an update that failed midway has turned some of them
            for index, (old, weight) in enumerate(zip(before, self._weights, strict=True)):
                new = weight.factors
                if new.left is not old.left or new.right is not old.right:
                    for follower in self._followers:
                        follower.move(index, new, _between(old, new))

    def warn_of_others(self, *, update: bool) -> None:
        """Warn before an `update` if a copy of the model that does not follow is being averaged into.

        Such a copy changes although no optimizer trains it. To be called after every step, so that changes are seen.
        """
        copies = {copy: watch for watch in self._watches for copy in watch.copies}
        if not copies:
            return
        followed = {weight for follower in self._followers for weight in follower.weights}
        for copy in copies.keys() - followed:
            if copy not in self._written:
                self._note(copy)
                copy.on_load(lambda weight: self._note(weight))  # what is loaded is no average
            elif update and writes(copy.core) > self._written[copy]:
                copies[copy].copies.discard(copy)
                tell(NOT_FOLLOWED)

    def _note(self, copy: AdaptedWeight) -> None:
        """Remember how often the copy's core was written to in place, as autograd counts it."""
        self._written[copy] = writes(copy.core)


class _Copy:
    """An average that is a copy of the whole model."""

    def __init__(self, average: nn.Module, weights: Sequence[AdaptedWeight]) -> None:
        adapter = weights[0].adapter
        self.weights = list(weights_of(average, adapter).values())
        if [weight.matrix_shape for weight in self.weights] != [weight.matrix_shape for weight in weights]:
            raise ValueError(
                f"{type(average).__name__} holds {len(self.weights)} OIALR layers of the adapter {adapter!r}, the "
                f"model {len(weights)}; the average must be a copy of the model, made after the adapter was."
            )

    def move(self, index: int, bases: Factors, transport: Transport) -> None:
        weight, device = self.weights[index], self.weights[index].core.device
        left, right = (None if b is None else b.to(device, copy=True) for b in (bases.left, bases.right))
        weight.apply(BasisChange(Factors(left, _moved(weight.matrix, transport), right), transport))


class _Tensors:
    """An average that is a list of tensors, in the order of the model's parameters: all, or those that train."""

    weights: Sequence[AdaptedWeight] = ()

    def __init__(self, average: Any, model: nn.Module, weights: Sequence[AdaptedWeight]) -> None:
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
        self._places = [(places[id(weight.core)], weight.matrix_shape) for weight in weights]

    def _tensors(self) -> list[torch.Tensor]:
        return list(getattr(self._average, "shadow_params", self._average))  # diffusers' EMAModel replaces its list

    def move(self, index: int, bases: Factors, transport: Transport) -> None:
        place, matrix_shape = self._places[index]
        tensor: Any = self._tensors()[place]
        matrix = tensor.detach()
        if matrix.ndim != len(matrix_shape):  # the dense kernel of a convolution
            matrix = matrix.reshape(matrix_shape)
        resize_parameter(tensor, _moved(matrix, transport))


def _between(before: Factors, after: Factors) -> Transport:
    """Where what lives in the bases `before` lies in those `after`, as far as it does."""

    def turn(old: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
        if old is None or new is None:
            return new if old is None else old.mT
        return old.mT @ new

    rights = (None if basis is None else basis.mT for basis in (before.right, after.right))
    return Transport(turn(before.left, after.left), turn(*rights))


def _moved(matrix: torch.Tensor, transport: Transport) -> torch.Tensor:
    example = next((part for part in transport if part is not None), matrix)
    return transport(matrix.to(device=example.device, dtype=example.dtype)).to(matrix)
