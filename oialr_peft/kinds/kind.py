"""What is asked of a kind of layer. Everything that the package knows of one kind is in one file of this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from ..linalg import Factors, Seen


class Kind(ABC):
    """A kind of layer: how its weight is a matrix, how a batch goes through it, and its two-layer pair.

    Without state; `base` is the plain layer, whose weight may have been freed. A new kind is a file of its own and a
    line in table.py.
    """

    takes_lora: ClassVar[bool] = False  # whether PEFT can write a change of its weight as LoRA

    def __init__(self, plain: type[nn.Module]) -> None:
        self.plain = plain  # the class of plain layers

    @property
    def name(self) -> str:
        return self.plain.__name__

    @abstractmethod
    def matrix_shape(self, base: Any) -> tuple[int, ...]:
        """The shape (rows, cols) of the weight as a matrix; (groups, rows, cols) where it is several."""

    @abstractmethod
    def features(self, base: Any) -> tuple[int, int]:
        """(in, out): the sizes of what goes in and comes out."""

    @abstractmethod
    def multiply(
        self, base: Any, x: torch.Tensor, factors: Factors, bias: torch.Tensor | None, *args: Any
    ) -> torch.Tensor:
        """What the layer gives for x with the weight that `factors` stand for, in the cheapest order.

        The core has the dtype of x, the bases may have another. A core without bases has the shape of the stored
        weight. `args`: what else the layer was called with.
        """

    @abstractmethod
    def seen(self, base: Any, x: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        """What a batch of inputs x is at the core, on the side that is cheaper to hold. Arguments as of `multiply`."""

    @abstractmethod
    def felt(self, base: Any, dy: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        """What the gradient of the outputs is at the core, on the same side."""

    @abstractmethod
    def pair(self, base: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        """Two plain layers (down, up) that take the place of `base` in inference; the bias is on `up`."""

    @abstractmethod
    def pair_weights(self, base: Any, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(down.weight, up.weight) of the pair, from the weight as a matrix: left (rows, rank) @ right."""

    @abstractmethod
    def unpaired(self, down: Any, up: Any) -> nn.Module:
        """The plain layer, without values, that a pair took the place of."""

    @abstractmethod
    def pair_product(self, layer: Any, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """The weight of the plain `layer` from the weights of its pair."""
