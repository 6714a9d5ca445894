"""MuonAdamW: Muon for hidden matrices and sigmas, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..kinds.conv import Conv
from ..kinds.embedding import Embedding
from ..layer import oialr_layers
from ..linalg import orthogonalise


_MUON = {"nesterov": True, "ns_steps": 5}


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer of two kinds of groups, told apart by their `kind`: "muon" and "adamw".

    Muon's step is the orthogonalised momentum of the gradient. It does not depend on the basis in which a matrix is
    written, so OIALR's rotations are invisible to it, and on a sigma of rank r it costs a fraction of what it costs on
    the weight. State, groups and hyper-parameters have the names of `torch.optim.Muon` and `torch.optim.AdamW`. Hand
    one to the Trainer as `optimizers=(optimizer, None)`; the same object trains a dense model.

    Args:
        muon: the matrices, or groups of them; each must have two dimensions.
        adamw: all other parameters, or groups of them.
        muon_lr: step of Muon's groups, in units of the spectral norm; 0.02 (default) suits most models.
        lr: AdamW's learning rate, default 1e-3.
        weight_decay: decoupled, of both kinds, default 0.01. Groups may set their own.
        momentum, betas: of Muon and AdamW, defaults 0.95 and (0.9, 0.95).
        eps: of AdamW, default 1e-8.

    Raises:
        ValueError: a parameter of `muon` that is not a matrix, or a number out of its range.
    """

    _is_made = False  # while torch adds the first groups

    def __init__(
        self,
        muon: Iterable[Any],
        adamw: Iterable[Any] = (),
        *,
        muon_lr: float = 0.02,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        for name, value in {"muon_lr": muon_lr, "lr": lr, "weight_decay": weight_decay, "eps": eps}.items():
            if not value >= 0:
                raise ValueError(f"`{name}` must be at least 0; got {value!r}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1); got {momentum!r}.")
        spectral = {"lr": muon_lr, "weight_decay": weight_decay, "momentum": momentum, **_MUON}
        groups = [{**spectral, **group, "kind": "muon"} for group in _groups(muon)]
        self._adamw: _Part | None = None
        if plain := _groups(adamw):
            self._adamw = _Part(plain, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
            groups += [{**group, "kind": "adamw"} for group in self._adamw.param_groups]
        super().__init__(groups, {"lr": lr})
        self._is_made = True

    @classmethod
    def from_model(
        cls, model: nn.Module, *, muon_lr: float = 0.02, lr: float = 1e-3, weight_decay: float = 0.01, **kwargs: Any
    ) -> MuonAdamW:
        """The optimizer of all trainable parameters of `model`, dense or with an OIALR adapter.

        Muon takes every matrix but embeddings, the output head that `get_output_embeddings` names and what is tied to
        them; AdamW takes the rest, without weight decay of vectors (biases, norms). Kernels of convolutions go to
        AdamW, and so do their sigmas. The head of a classifier is a matrix as any.
        """
        apart = _not_for_muon(model)
        trained = {id(p): p for p in model.parameters() if p.requires_grad}
        spectral = {i for i, p in trained.items() if p.ndim == 2 and i not in apart}
        rest = [p for i, p in trained.items() if i not in spectral]
        groups = [
            {"params": [p for p in rest if p.ndim > 1]},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return cls(
            [p for i, p in trained.items() if i in spectral],
            [group for group in groups if group["params"]],
            muon_lr=muon_lr,
            lr=lr,
            weight_decay=weight_decay,
            **kwargs,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; a group that comes later takes what it does not say from the first one of its `kind`.

        Raises:
            ValueError: it has no kind, or there is no group of its kind yet.
        """
        group = dict(param_group)
        if self._is_made:
            kinds = {known["kind"]: known for known in reversed(self.param_groups)}
            if group.get("kind") not in kinds:
                raise ValueError(
                    f"`kind` of a new group of parameters must be one of {sorted(kinds)}, which this MuonAdamW has; "
                    f"got {group.get('kind')!r}. Say it in the group, or make the optimizer anew with both kinds."
                )
            group = {**{n: v for n, v in kinds[group["kind"]].items() if n not in ("params", "param_names")}, **group}
        group["params"] = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
        for shape in (tuple(p.shape) for p in group["params"] if group["kind"] == "muon" and p.ndim != 2):
            raise ValueError(
                f"Muon takes matrices only; got a parameter of shape {shape}. Put it among `adamw`, or use "
                "MuonAdamW.from_model, which sorts the parameters of a model."
            )
        super().add_param_group(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle; AdamW's part gets its groups and state at each step."""
        super().__setstate__(state)
        self._is_made = True
        plain = any(group["kind"] == "adamw" for group in self.param_groups)
        self._adamw = _Part([nn.Parameter(torch.empty(0))]) if plain else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._spectral_step(group)
        if self._adamw is not None:  # its groups and state are ours, also after `load_state_dict`
            self._adamw.param_groups = [group for group in self.param_groups if group["kind"] == "adamw"]
            self._adamw.state = self.state
            self._adamw.step()
        return loss

    def _spectral_step(self, group: dict[str, Any]) -> None:
        """torch.optim.Muon's step, with matrices of one shape orthogonalised together."""
        by_shape: dict[Any, list[tuple[nn.Parameter, torch.Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if (gradient := parameter.grad) is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            by_shape[update.shape, update.dtype, update.device].append((parameter, update))
        for alike in by_shape.values():
            updates = torch.stack([update for _, update in alike])
            steps = orthogonalise(updates.to(_working_dtype(updates)), steps=group["ns_steps"]).to(updates.dtype)
            for (parameter, _), step in zip(alike, steps, strict=True):
                rows, cols = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step, alpha=-group["lr"] * max(1, rows / cols) ** 0.5)


class _Part(torch.optim.AdamW):
    """AdamW inside of MuonAdamW, whose step is part of that one's."""

    is_part = True


def _groups(parameters: Iterable[Any]) -> list[dict[str, Any]]:
    """Groups of parameters, from groups or from parameters."""
    given = list(parameters)
    return given if given and isinstance(given[0], dict) else [{"params": given}] if given else []


def _not_for_muon(model: nn.Module) -> set[int]:
    """The ids of the parameters of embeddings and convolutions, factorised ones too, and of the output head."""
    get_output = getattr(model, "get_output_embeddings", None)
    modules: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    layers = oialr_layers(model).values()
    modules += [layer for layer in layers if isinstance(layer.kind, (Conv, Embedding))]
    if callable(get_output) and isinstance(head := get_output(), nn.Module):
        modules.append(head)
    return {id(p) for module in modules for p in module.parameters()}


def _working_dtype(updates: torch.Tensor) -> torch.dtype:
    """bfloat16 on accelerators, as torch.optim.Muon; on a CPU, where that takes up to 60 times as long, not."""
    return updates.dtype if updates.device.type == "cpu" else torch.bfloat16
