"""The experts of a mixture, which transformers 5 holds fused: one tensor (experts, out, in) for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import nn

from ..compat.torch_ import set_parameter
from ..compat.transformers_ import apply_gate, fused_names, mark_whole
from ..linalg import Factors, Seen
from .apart import TakenApart
from .kind import Kind
from .product import linear, linear_felt, linear_seen


class ExpertsLinear(nn.Module):
    """A linear layer without bias for each expert, weight (experts, out, in); rows of x are sorted by expert."""

    bias: None

    def __init__(self, experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """x (rows, in), of which the first counts[0] are the first expert's, and so on."""
        return by_expert(x, Factors(None, self.weight, None), counts)


class ExpertsConv1D(nn.Module):
    """As `ExpertsLinear` with the weight stored transposed, (experts, in, out)."""

    bias: None

    def __init__(self, experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(experts, in_features, out_features))
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """As that of `ExpertsLinear`."""
        return by_expert(x, Factors(None, self.weight.mT, None), counts)


def by_expert(x: torch.Tensor, factors: Factors, counts: list[int]) -> torch.Tensor:
    """Each expert's rows of x through its own factors, in the cheapest order for so many rows."""
    return torch.cat([linear(rows, *own) for rows, own in _of_each(x, factors, counts)])


def _of_each(x: torch.Tensor, factors: Factors, counts: list[int]) -> Iterator[tuple[torch.Tensor, Factors]]:
    """The rows and the factors of each expert."""
    parts: Any = ((None,) * len(counts) if part is None else part.unbind() for part in factors)
    return ((rows, Factors(*own)) for rows, *own in zip(x.split(counts), *parts, strict=True))


def _together(each: list[Seen]) -> Seen:
    """What was seen of every expert, stacked."""
    moments: Any = zip(*((seen.coming, seen.made) for seen in each), strict=True)
    return Seen(each[0].side, *(None if some[0] is None else torch.stack(some) for some in moments))


class PerExpert(Kind):
    """u (experts, out, rank) @ sigma @ vh (experts, rank, in); all experts of a layer share one rank."""

    def matrix_shape(self, base: Any) -> tuple[int, ...]:
        return tuple(base.weight.shape)

    def features(self, base: Any) -> tuple[int, int]:
        return base.in_features, base.out_features

    def multiply(self, base: Any, x: torch.Tensor, factors: Factors, bias: None, *args: Any) -> torch.Tensor:
        return by_expert(x, factors, *args)

    def seen(self, base: Any, x: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        return _together([linear_seen(rows, own) for rows, own in _of_each(x, factors, *args)])

    def felt(self, base: Any, dy: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        return _together([linear_felt(rows, own) for rows, own in _of_each(dy, factors, *args)])

    def pair(self, base: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        experts, inputs, outputs = base.weight.shape[0], base.in_features, base.out_features
        return ExpertsLinear(experts, inputs, rank), ExpertsLinear(experts, rank, outputs)

    def pair_weights(self, base: Any, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return right, left

    def unpaired(self, down: Any, up: Any) -> nn.Module:
        make: Any = self.plain
        return make(len(up.weight), down.in_features, up.out_features)

    def pair_product(self, layer: Any, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return up @ down


class PerExpertTransposed(PerExpert):
    """The same for a weight that is stored (experts, in, out)."""

    def multiply(self, base: Any, x: torch.Tensor, factors: Factors, bias: None, *args: Any) -> torch.Tensor:
        return by_expert(x, factors.transposed(), *args)

    def seen(self, base: Any, x: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        return super().seen(base, x, factors.transposed(), *args).flipped

    def felt(self, base: Any, dy: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        return super().felt(base, dy, factors.transposed(), *args).flipped

    def pair_weights(self, base: Any, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left.mT, right.mT

    def pair_product(self, layer: Any, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return (up @ down).mT


class Experts(TakenApart):
    """Fused experts with their two weights as layers: `first`, in most models gate and up, and `second`.

    Other names than the model's own, because transformers splits tensors of those names by expert when it saves.
    Takes over the parameters and all else of `source`.
    """

    parts: ClassVar[tuple[str, ...]] = ("first", "second")
    first: nn.Module
    second: nn.Module
    act_fn: nn.Module
    post_expert_norm: nn.Module
    num_experts: int
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.plain: Any = type(source)
        self.fused = cast(tuple[str, str], fused_names(source))
        make = ExpertsConv1D if source.is_transposed else ExpertsLinear
        for part, name in zip(self.parts, self.fused, strict=True):
            weight: Any = getattr(source, name)
            outputs, inputs = weight.shape[-2:] if make is ExpertsLinear else reversed(weight.shape[-2:])
            with torch.device("meta"):
                layer = make(len(weight), inputs, outputs)
            set_parameter(layer, "weight", weight)
            setattr(self, part, layer)
        _take_over(self, source, without=self.fused)

    def join(self) -> nn.Module:
        joined = self.plain.__new__(self.plain)
        nn.Module.__init__(joined)
        _take_over(joined, self, without=(*self.parts, "plain", "fused"))
        for part, name in zip(self.parts, self.fused, strict=True):
            set_parameter(joined, name, getattr(self, part).weight)
        mark_whole(joined)
        return joined

    def forward(self, hidden_states: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """hidden_states (tokens, features); the experts of each token (tokens, k) and the share of each of them."""
        tokens, k = chosen.shape
        experts, order = chosen.reshape(-1).sort(stable=True)
        counts = torch.bincount(experts, minlength=self.num_experts).tolist()
        first, second = self.fused
        x = self._biased(self.first(hidden_states[order // k], counts), first, experts)
        x = apply_gate(self, x) if self.has_gate else self.act_fn(x)
        x = self._biased(self.second(x, counts), second, experts)
        if self.has_post_expert_norm:
            x = self.post_expert_norm(x)
        x = x * shares.reshape(-1)[order].unsqueeze(-1)
        return x[order.argsort()].reshape(tokens, k, x.shape[-1]).sum(1).to(hidden_states.dtype)

    def _biased(self, x: torch.Tensor, name: str, experts: torch.Tensor) -> torch.Tensor:
        return x + getattr(self, f"{name}_bias")[experts] if self.has_bias else x


def is_experts(layer: nn.Module) -> bool:
    """Whether the layer can be taken apart into its two weights."""
    return fused_names(layer) is not None


def expert_weights(source: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of the two parts by name."""
    return {part: getattr(source, name) for part, name in zip(Experts.parts, fused_names(source) or (), strict=True)}


def _take_over(target: Any, source: nn.Module, without: tuple[str, ...]) -> None:
    """Give `target` the attributes, parameters, buffers and children of `source`."""
    for name, value in vars(source).items():
        if not name.startswith("_") and name not in (*without, "forward"):  # which Accelerate puts there
            setattr(target, name, value)
    for name, parameter in source.named_parameters(recurse=False):
        if name not in without:
            set_parameter(target, name, parameter)
    for name, buffer in source.named_buffers(recurse=False):
        target.register_buffer(name, buffer)
    for name, child in source.named_children():
        if name not in without:
            target.add_module(name, child)
