"""What goes through the layers in the step before an update, by which it chooses what stays of them."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..compat.torch_ import run_eagerly
from ..config import OIALRConfig
from ..kinds import Kind
from ..linalg import Seen
from ..policy import TargetSize
from ..policy.ranks import RankRule
from ..tuner.rules import initial_rank
from ..weights import AdaptedWeight
from ..workers.group import Workers
from ..workers.totals import totals


Look = Callable[..., Seen]
MOMENTS = ("coming", "made")  # of what was seen
SPOILT = ("", "", "spoilt")  # beside them: on how many processes something was not finite


class SeenActivations:
    """Gathers what goes through the cores of layers in one optimizer step, all its micro-batches together.

    Of the last step only: so nothing of it has to be in a checkpoint, and a resumed run sees the same. Several
    processes add up what each saw of its own batches (`share`).

    Attributes:
        found: {layer: what was seen}.
        clean: {device: whether all of it was finite}. A step that a gradient scaler skips is taken again with another
            scale, so layers that overflowed and layers that did not cannot be compared any more.
    """

    def __init__(
        self, weights: Mapping[str, AdaptedWeight], config: OIALRConfig, ranks: RankRule | TargetSize
    ) -> None:
        self.weights, self.config, self.ranks = weights, config, ranks
        self.found: dict[str, Seen] = {}
        self.clean: dict[torch.device, torch.Tensor] = {}
        self._eager, self._looks = contextlib.ExitStack(), False
        weakref.finalize(self, self._eager.close)
        for weight in weights.values():
            if isinstance(weight.observer, _Observer):  # of a run that was interrupted before its update
                weight.observer.end()

    @property
    def awaited(self) -> list[str]:
        """The layers that an update takes to a rank that is given, not found in their singular values."""
        if not self.config.activation_aware:
            return []
        if self.ranks.joint({name: weight.facts for name, weight in self.weights.items()}):
            return list(self.weights)
        dense = {name: weight.full_rank for name, weight in self.weights.items() if not weight.is_factored}
        return [name for name, full_rank in dense.items() if initial_rank(name, full_rank, self.config) < full_rank]

    def watch(self, due: bool) -> None:
        """Begin anew: an update is due after the next step, or it is not."""
        self.found, self.clean = {}, {}
        names = set(self.awaited) if due else ()
        if bool(names) != self._looks:
            self._looks = bool(names)
            if names:
                self._eager.enter_context(run_eagerly())
            else:
                self._eager.close()
        for name, weight in self.weights.items():
            weight.observer = _Observer(self, name) if name in names else None

    @property
    def comparable(self) -> bool:
        """Whether what was seen of one layer can be compared with what was seen of another."""
        return all(bool(clean) for clean in self.clean.values())

    def share(self, workers: Workers) -> None:
        """Add up what all processes saw, so that the choice is that of one process with all their batches."""
        if not self.awaited or workers.size == 1:
            return
        parts = {(n, s.side, p): m for n, s in self.found.items() for p in MOMENTS if (m := getattr(s, p)) is not None}
        spoilt = torch.tensor(float(not self.comparable), device=next(iter(self.weights.values())).core.device)
        whole = totals(workers, {**parts, SPOILT: spoilt})
        self.found, self.clean = {}, {spoilt.device: whole.pop(SPOILT) == 0}
        for (name, side, part), moment in whole.items():
            self.found[name] = self.found.get(name, Seen(side))._replace(**{part: moment})

    @torch.no_grad()
    def look(self, name: str, look: Look, base: Any, tensor: torch.Tensor, args: tuple[Any, ...]) -> Seen:
        """What a batch is at the core of a layer, its inputs or the gradient of its outputs."""
        held = self.weights[name].full_factors  # in the backward pass FSDP may have taken its shards back already
        with torch.autocast(tensor.device.type, enabled=False):
            dtype = torch.promote_types(held.core.dtype, torch.float32)
            tensor = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor  # else places in a table
            return look(base, tensor, held.bases_to(dtype)._replace(core=held.core.to(dtype)), *args)

    def add(self, name: str, *parts: Seen) -> None:
        """Add both sides of one call of a layer, when its gradient has come: a call without effect does not count."""
        for seen in parts:
            for moment in (seen.coming, seen.made):
                if moment is not None:
                    finite = torch.isfinite(moment).all()
                    self.clean[moment.device] = finite & self.clean.get(moment.device, True)
            before = self.found.get(name)
            self.found[name] = seen if before is None else before.with_more(seen)


class _Observer:
    """Of one layer; it ends with its updater, and copies of the layer have none."""

    def __init__(self, seen: SeenActivations, name: str) -> None:
        self._seen, self._name = weakref.ref(seen), name

    @torch.compiler.disable()
    def __call__(self, kind: Kind, base: Any, x: torch.Tensor, y: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor:
        """The layer gave y for x; what it is to give instead."""
        if (seen := self._seen()) is None or not y.requires_grad:
            return y
        came = seen.look(
            self._name, kind.seen, base, x, args
        )  # now: x may be changed in place before the gradient comes
        y = y.clone()  # of a view a change in place, such as that of ReLU(inplace=True), would drop the hook
        y.register_hook(lambda dy: self._felt(came, kind.felt, base, dy, args))
        return y

    def _felt(self, came: Seen, look: Look, base: Any, dy: torch.Tensor, args: tuple[Any, ...]) -> None:
        if (seen := self._seen()) is not None:
            seen.add(self._name, came, seen.look(self._name, look, base, dy, args))

    def end(self) -> None:
        """Its updater looks into steps no more."""
        if (seen := self._seen()) is not None:
            seen.watch(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self):
        return type(None), ()
