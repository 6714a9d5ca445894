"""Notices a training run that forgot to make the updates."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from .errors import tell


if TYPE_CHECKING:
    from .weights import AdaptedWeight


WAY_OUT = (
    "Pass `callbacks=[OIALRCallback()]` to the Trainer, or call `updater.step()` of an "
    "`OIALRUpdater(model, optimizer)` after every `optimizer.step()` of the optimizer that trains the adapter."
)


class UpdateWatch:
    """Warns once when an adapter trains and nobody makes its updates.

    That is so at the first optimizer step if no `OIALRUpdater` was made, since a short run may end before an update is
    due, and with an updater once training goes past the second update's step without a call that counts. It counts the
    steps of whichever torch optimizer holds the core of `weight`, so it sees optimizer steps whatever the loop looks
    like. It ends with the weight. Copies of the weight have one of their own, and deep copies are noted in `copies`.
    """

    def __init__(self, weight: AdaptedWeight, limit: int) -> None:
        self.limit = limit
        self.copies: weakref.WeakSet[AdaptedWeight] = weakref.WeakSet()  # that no optimizer trains
        self._weight = weakref.ref(weight)
        self._counted: tuple[weakref.ref[Any], tuple[int, int]] | None = None  # by whom last, at which step
        self._attended = False
        self._steps = 0
        self._warned = False
        with _LOCK:
            _WATCHES.add(self)

    def end(self) -> None:
        """Stop counting: the adapter is gone."""
        with _LOCK:
            _WATCHES.discard(self)

    def attend(self) -> None:
        """An updater was made for this adapter."""
        self._attended = True

    def reset(self, updater: Any, at: tuple[int, int]) -> None:
        """An updater made an update or found it not to be due yet, once for each step of the optimizer.

        Raises:
            RuntimeError: another one did so for this step.
        """
        if self._counted is not None and self._counted[0]() not in (None, updater) and self._counted[1] == at:
            raise RuntimeError(
                "Two OIALRUpdaters make the updates of one model, so its ranks would fall twice as fast. "
                "OIALRCallback makes one by itself: leave yours away, or the callback."
            )
        self._steps, self._counted = 0, (weakref.ref(updater), at)

    def on_step(self, optimizer: Any) -> None:
        """Any optimizer of the process took a step."""
        for copy in list(self.copies):
            if _trains(optimizer, copy):
                self.copies.discard(copy)
        weight = self._weight()
        if self._warned or weight is None or not _trains(optimizer, weight):
            return
        if getattr(optimizer, "is_part", False) or skipped_step(optimizer):  # a part of another's step, or none
            return
        self._steps += 1
        if self._attended and self._steps <= self.limit:
            return
        self._warned = True
        tell(
            f"{self._steps} optimizer steps were taken, but no OIALR update was made; one was due by step "
            f"{self.limit}. Ranks and bases stay as they are. {WAY_OUT}"
            if self._attended
            else "An optimizer trains an OIALR adapter, but no OIALR update was made or is to come: there is no "
            f"OIALRCallback or OIALRUpdater for it. {self._lost(weight)} {WAY_OUT}"
        )

    @staticmethod
    def _lost(weight: AdaptedWeight) -> str:
        if weight.base is None:
            return "Ranks and bases stay as they are."
        return "The size of sigma's steps is not matched to a dense weight's (`lr_scale`), so they are small."

    def __deepcopy__(self, memo: dict[int, Any]) -> UpdateWatch | None:
        if (copy := memo.get(id(self._weight()))) is None:
            return None
        self.copies.add(copy)
        return UpdateWatch(copy, self.limit)

    def __reduce__(self) -> tuple[Any, ...]:
        weight = self._weight()
        return (type(None), ()) if weight is None else (UpdateWatch, (weight, self.limit))


# Watches end with their weights, but torch's hook stays: one that is removed while torch goes through its hooks, as
# garbage collection may do, ends the step with an error.
_WATCHES: weakref.WeakSet[UpdateWatch] = weakref.WeakSet()
_LOCK = threading.RLock()  # adapters may be made in one thread while another one trains


def _tell_watches(optimizer: Any, args: Any, kwargs: Any) -> None:
    with _LOCK:
        watches = list(_WATCHES)
    for watch in watches:
        watch.on_step(optimizer)


register_optimizer_step_post_hook(_tell_watches)


def skipped_step(optimizer: Any) -> bool:
    """Whether a GradScaler had the optimizer find an overflow inside its step, as it does with fused ones.

    The one value that is read back from the device, as the scaler itself reads it for all other optimizers.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _trains(optimizer: Any, weight: AdaptedWeight) -> bool:
    core = weight.core
    return core.requires_grad and any(core is held for group in optimizer.param_groups for held in group["params"])
