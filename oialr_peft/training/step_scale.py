"""The scale of sigma's step, applied around every step of the optimizer; its groups and state stay as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from ..compat.torch_ import foreach_extrapolate, foreach_scaled, lion_rate, writes
from ..errors import tell
from ..policy.step_size import KINDS, Ramp, StepKind, StepSize
from .optimizer_steps import around_steps


# Weight decay apart from the step, unless a group says otherwise.
_DECOUPLED = frozenset({"AdamW", "Muon", "Lion", "Adafactor"})


class Scaled(Protocol):
    """What is asked of a layer's weight: the Parameter that trains, and the shapes of weight and Parameter now."""

    @property
    def core(self) -> nn.Parameter: ...
    @property
    def matrix_shape(self) -> tuple[int, ...]: ...
    @property
    def core_shape(self) -> tuple[int, ...]: ...
    @property
    def is_factored(self) -> bool: ...


class StepScale:
    """Multiplies the step that an optimizer makes in the trained matrix of each layer.

    Before a step the matrices that are scaled are copied, after it their change is multiplied; weight decay that is
    decoupled from the step is not. So it works with any loop, scheduler, clipping and sharding.

    Args:
        optimizer: a torch optimizer that holds the parameters.
        layers: {name: its weight}.
        policy: which scale.

    Raises:
        ValueError: a number as scale for an optimizer whose step is relative to the weight or linear in the gradient.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, layers: Mapping[str, Scaled], policy: StepSize) -> None:
        self.policy = policy
        self._layers, self._warned = dict(layers), False
        groups = _groups(optimizer)
        self._decays_apart = any(cls.__name__ in _DECOUPLED for cls in type(optimizer).__mro__)
        self._kinds = {n: self._kind_of(optimizer, groups.get(id(w.core), {})) for n, w in self._layers.items()}
        self._ramps: dict[str, Ramp] = {}
        self._loaded: Mapping[str, Sequence[float]] | None = {}
        self._origins: dict[float, list[tuple[nn.Parameter, torch.Tensor, int]]] = {}
        around_steps(optimizer, self, self.replaces)  # a run before this one may have left its own

    def refresh(self) -> None:
        """Set out for the scales of the present ranks; to be called after an update."""
        self._settle()
        for name, target in self._targets().items():
            self._ramps[name].aim(target)

    def restart(self) -> None:
        """Ranks were loaded: from the next step on the scales of those, unless scales were loaded with them."""
        if self._loaded is None:
            self._loaded = {}

    def scales(self) -> dict[str, float]:
        """{layer: factor of its next step}."""
        return {name: ramp.value for name, ramp in self._present_ramps().items()}

    def state_dict(self) -> dict[str, Sequence[float]]:
        """{layer: [start, steps taken]} of the scales that are on their way."""
        if self._loaded is not None:
            return dict(self._loaded)
        return {n: [ramp.start, ramp.taken] for n, ramp in self._ramps.items() if ramp.value != ramp.target}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from `state_dict()`, for the ranks that the layers have at the next step: they may be loaded later."""
        self._loaded = dict(state)

    def _present_ramps(self) -> dict[str, Ramp]:
        """The scales on their way; before the first step, and after a load, those of the present ranks."""
        if self._loaded is None:
            return self._ramps
        found = {}
        for name, target in self._targets().items():
            start, taken = self._loaded.get(name, (target, 0))
            found[name] = Ramp(float(start), target, int(taken))
        return found

    def _settle(self) -> None:
        """From here on the ranks that were loaded are the ones to set out from."""
        self._ramps, self._loaded = self._present_ramps(), None

    def _targets(self) -> dict[str, float]:
        found = {}
        for name, weight in self._layers.items():
            kind, adjustment = self._kinds[name]
            shapes = weight.matrix_shape, weight.core_shape
            found[name] = self.policy.scale(kind, *shapes, factored=weight.is_factored, muon_adjustment=adjustment)
        return found

    def _kind_of(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> tuple[StepKind, str | None]:
        """How the optimizer steps the parameters of a group, and Muon's adjustment."""
        if (named := group.get("kind")) in ("muon", "adamw"):  # MuonAdamW
            return ("spectral" if named == "muon" else "entrywise"), None
        name = next((cls.__name__ for cls in type(optimizer).__mro__ if cls.__name__ in KINDS), None)
        kind: StepKind = KINDS[name] if name else "linear"
        if name == "Adafactor" and group.get("scale_parameter") is False:  # transformers', as the Trainer makes it
            kind = "entrywise"
        if name is None and self.policy.lr_scale == "match" and not self._warned:
            self._warned = True
            tell(
                f"OIALR does not know how the step of {type(optimizer).__module__}.{type(optimizer).__name__} depends "
                "on the shape of a matrix, so it is not scaled and shrinks with the rank if it is Adam-like. Set "
                "`lr_scale` to a number, or to 'none' if this is fine."
            )
        if not isinstance(self.policy.lr_scale, str) and kind in ("relative", "linear") and name:
            raise ValueError(
                f"`lr_scale={self.policy.lr_scale}` with {name}: its step follows the "
                f"{'weight' if kind == 'relative' else 'gradient'}, so a factor would be counted twice. Use "
                "lr_scale='match', which leaves it alone, or change its learning rate."
            )
        return kind, group.get("adjust_lr_fn")

    def replaces(self, other: object) -> bool:
        """Whether both would scale the same parameter."""
        return isinstance(other, StepScale) and not self._cores().isdisjoint(other._cores())

    def _cores(self) -> set[int]:
        return {id(weight.core) for weight in self._layers.values()}

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note from where each step is to be scaled: the parameter after decay that is apart from the step."""
        self._settle()
        groups = _groups(optimizer)
        alike: dict[tuple[float, Any], list[nn.Parameter]] = defaultdict(list)
        for name, factor in self.scales().items():
            if factor != 1:
                core = self._layers[name].core
                alike[factor, 1 - self._decay(optimizer, groups.get(id(core), {}))].append(core)
        self._origins = defaultdict(list)
        for (factor, kept), cores in alike.items():
            origins = foreach_scaled([core.detach() for core in cores], kept)
            self._origins[factor] += zip(cores, origins, map(writes, cores), strict=True)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Multiply what the step changed.

        What it left alone for want of a gradient stays. Only now can that be told: a closure makes gradients within
        the step, and some loops drop them there.
        """
        for factor, noted in self._origins.items():
            stepped = [(p.detach(), origin) for p, origin, count in noted if p.grad is not None or writes(p) != count]
            if stepped:
                parameters, origins = map(list, zip(*stepped, strict=True))
                foreach_extrapolate(parameters, origins, factor)
        self._origins = {}
        for ramp in self._ramps.values():
            ramp.advance()

    def _decay(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Any:
        """The share of a parameter that decay takes in a step, where that is no part of the step itself."""
        apart = self._decays_apart or "kind" in group
        if not (group.get("decoupled_weight_decay", apart) and group.get("weight_decouple", True)):
            return 0.0
        decay = group.get("weight_decay", 0.0)
        if group.get("fixed_decay"):  # pytorch_optimizer's, as `weight_decouple`
            return decay
        return (group.get("lr") or 0.0) * decay / lion_rate(optimizer)  # Adafactor may find its rate by itself


def _groups(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """{id of a parameter: its group}."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
