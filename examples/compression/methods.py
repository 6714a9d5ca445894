"""A trained dense model made smaller: cut once by an SVD and trained on, or by OIALR while it trains on."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from training import train

from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.layer import adapted_weights
from oialr_peft.linalg import stored_size
from oialr_peft.plain import model_size


NONE: Mapping[str, torch.Tensor] = {}
CALIBRATION = 32  # batches of training data by which activations are weighed


# The compressed model, the share of the dense parameters that it holds, and a model of the shapes that its file has.
Small = tuple[nn.Module, float, nn.Module]


def oialr(dense: nn.Module, task: Any, seed: int, share: float, steps: int, lr: float, **fields: Any) -> Small:
    """`target_size`: cut at several updates, ranks of all layers together."""
    model: Any = get_peft_model(copy.deepcopy(dense), OIALRConfig(target_size=share, train_rest=True, **fields))  # type: ignore[arg-type]
    train(model, task, seed, steps, lr, lambda o: OIALRUpdater(model, o, total_steps=steps).step)
    ranks = {name.removeprefix("base_model.model."): rank for name, rank in model.base_model.ranks().items()}
    return model, model_size(model).share, in_two(dense, ranks)


def svd(dense: nn.Module, task: Any, seed: int, share: float, steps: int, lr: float, weighted: bool) -> Small:
    """Cut once, every layer by the same share of its size, then both factors and all else train.

    `weighted`: what is cut is least in the outputs on training data, as in SVD-LLM (Wang and others 2024): the SVD is
    of W S, S Sᵀ the second moments of the layer's inputs.
    """
    ranks = ranks_for(dense, share)
    model = in_two(dense, ranks, second_moments(dense, task, seed, list(ranks)) if weighted else {})
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, dense)]
    return train(model, task, seed, steps, lr), sizes[0] / sizes[1], model


METHODS: dict[str, Callable[..., Small]] = {
    "SVD": lambda *given: svd(*given, weighted=False),
    "SVD by activations": lambda *given: svd(*given, weighted=True),
    "OIALR": lambda *given: oialr(*given, bases="frozen"),
    "OIALR, longer": lambda *given: oialr(*given, bases="longer"),
}


def ranks_for(dense: nn.Module, share: float) -> dict[str, int]:
    """The ranks by which every layer that OIALR takes holds the same share of its values, and the model `share`."""
    model = get_peft_model(copy.deepcopy(dense), OIALRConfig(delay=1))  # type: ignore[arg-type]
    shapes = {name: weight.matrix_shape for name, weight in adapted_weights(model).items()}
    size = model_size(model)
    budget = share * size.dense.values - size.rest.values
    each = budget / sum(map(math.prod, shapes.values()))
    wanted = {name: each * m * n / (m + n) for name, (m, n) in shapes.items()}
    ranks = {name: int(rank) for name, rank in wanted.items()}
    spare = budget - sum(stored_size(shapes[name], rank) for name, rank in ranks.items())
    for name in sorted(wanted, key=lambda name: int(wanted[name]) - wanted[name]):  # what rounding took the most from
        if (more := stored_size(shapes[name], ranks[name] + 1) - stored_size(shapes[name], ranks[name])) <= spare:
            ranks[name], spare = ranks[name] + 1, spare - more
    return {name.removeprefix("base_model.model."): rank for name, rank in ranks.items()}


def in_two(dense: nn.Module, ranks: Mapping[str, int], moments: Mapping[str, torch.Tensor] = NONE) -> nn.Module:
    """The dense model with these layers as two each, where that is smaller; what is cut by the moments there are."""
    model = copy.deepcopy(dense)
    for name, rank in ranks.items():
        layer: Any = model.get_submodule(name)
        if stored_size(tuple(layer.weight.shape), rank) < layer.weight.numel():
            model.set_submodule(name, _cut(layer, rank, moments.get(name)))
    return model


@torch.no_grad()
def second_moments(dense: nn.Module, task: Any, seed: int, names: list[str]) -> Mapping[str, torch.Tensor]:
    """{layer: sum of x xᵀ over its inputs on some batches}, in float64."""
    found: dict[str, Any] = defaultdict(float)

    def hook(name: str) -> Any:
        def note(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            rows = inputs[0].flatten(0, -2).double()
            found[name] = found[name] + rows.mT @ rows

        return note

    handles = [dense.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    for _, batch in zip(range(CALIBRATION), task.batches(seed)):  # noqa: B905
        task.loss(dense, batch)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def _cut(layer: Any, rank: int, moments: torch.Tensor | None) -> nn.Module:
    """The layer as two, whose weights have the same singular values."""
    weight = layer.weight.double()
    if moments is not None:
        ridge = 1e-6 * moments.diagonal().mean() * torch.eye(len(moments), dtype=weight.dtype)
        root = torch.linalg.cholesky(moments + ridge)
        u, _, _ = torch.linalg.svd(weight @ root, full_matrices=False)
        weight = u[:, :rank] @ (u[:, :rank].mT @ weight)  # the best of its rank for W S
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    half = s[:rank].sqrt()
    biased = layer.bias is not None
    down, up = nn.Linear(weight.shape[1], rank, bias=False), nn.Linear(rank, weight.shape[0], bias=biased)
    down.weight.copy_(half[:, None] * vh[:rank])
    up.weight.copy_(u[:, :rank] * half)
    if biased:
        up.bias.copy_(layer.bias)
    return nn.Sequential(down, up)
