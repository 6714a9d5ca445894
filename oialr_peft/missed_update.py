"""Notices a training run that forgot to make the updates."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from .errors import OIALRWarning


if TYPE_CHECKING:
    from .weights import AdaptedWeight


class UpdateWatch:
    """Warns once when training of an adapter goes past the second update's step and nobody made an update.

    It counts the steps of whichever torch optimizer holds the core of `weight`, so it sees optimizer steps whatever
    the loop looks like. `OIALRUpdater.step` calls `reset`. It ends with the weight, and copies of it have none.
    """

    def __init__(self, weight: AdaptedWeight, limit: int) -> None:
        self.limit = limit
        self._weight = weakref.ref(weight)
        self._steps = 0
        self._warned = False
        handle = register_optimizer_step_post_hook(self._on_step)
        self._end = weakref.finalize(weight, handle.remove)

    def end(self) -> None:
        """Stop counting: the adapter is gone."""
        self._end()

    def reset(self) -> None:
        """An update was made or found not to be due yet."""
        self._steps = 0

    def _on_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        weight = self._weight()
        if self._warned or weight is None:
            return
        core = weight.core
        if not any(core is held for group in optimizer.param_groups for held in group["params"]):
            return
        self._steps += 1
        if self._steps > self.limit:
            self._warned = True
            warnings.warn(
                f"{self._steps} optimizer steps were taken, but no OIALR update was made; one was due by step "
                f"{self.limit}. Ranks and bases stay as they are. Pass `callbacks=[OIALRCallback()]` to the Trainer, "
                "or call `updater.step()` of an `OIALRUpdater(model, optimizer)` after every `optimizer.step()`.",
                OIALRWarning,
                stacklevel=4,
            )

    def __reduce__(self):
        return type(None), ()
