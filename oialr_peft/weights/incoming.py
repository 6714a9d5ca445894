"""What a state dict brings for the weight of one adapter: room made before it is loaded, a word after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..errors import tell
from .form import DENSE, SIGMA, VH, WEIGHT, Form, Slot, U


if TYPE_CHECKING:
    from .adapted import AdaptedWeight


def make_room(weight: AdaptedWeight, state_dict: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Bring `weight` into the rank and form in which a state dict has it, where that has all of it.

    Otherwise it stays as it is, and torch says which tensors are missing or of another shape.
    """

    def shape(slot: Slot) -> tuple[int, ...] | None:
        tensor = state_dict.get(f"{prefix}{slot.name}.{weight.adapter}")
        return None if tensor is None else tuple(tensor.shape)

    if (sigma := shape(SIGMA)) is None:
        if shape(WEIGHT) == weight.shape:
            weight.match(None, DENSE)
        return
    form = Form(shape(U) is not None, shape(VH) is not None)
    if form == DENSE:
        _warn_of_sigma_alone(weight, sigma)
        return
    rank = min(sigma[-2:]) if len(sigma) >= 2 else 0
    if 1 <= rank <= weight.full_rank and form.shapes(weight.matrix_shape, rank) == {
        slot: shape(slot) for slot in (SIGMA, *form.bases)
    }:
        weight.match(rank, form)


def _warn_of_sigma_alone(weight: AdaptedWeight, sigma: tuple[int, ...]) -> None:
    """Say that sigma means something in the bases of its time only; those of a residual weight never change."""
    if weight.is_factored and weight.base is None and sigma == tuple(weight.core.shape):
        tell(
            "This state dict has sigmas of OIALR layers without their bases, which are buffers, so they are put "
            "beside the bases of now. That is right only if no basis update was made since the state dict was taken. "
            "Take `model.state_dict()`, or what `peft.get_peft_model_state_dict(model)` gives, and not only the "
            "parameters that train.",
            once=True,
        )


class OnLoad:
    """A hook that calls with a weight; copies and pickles of the model get one that does nothing."""

    def __init__(self, call: Callable[[AdaptedWeight], None] | None, weight: AdaptedWeight | None) -> None:
        self.call, self.weight = call, weight

    def __call__(self, *_: Any) -> None:
        if self.call is not None and self.weight is not None:
            self.call(self.weight)

    def __reduce__(self) -> tuple[Any, ...]:
        return OnLoad, (None, None)
