"""Notices a training run that forgot to make the updates."""

from __future__ import annotations

import warnings

import torch

from ..errors import OIALRWarning


class UpdateWatch:
    """Warns once when training goes past the first update and nobody made it.

    One watch is shared by all layers of an adapter. It follows the version counter of one trained tensor, which every
    optimizer step raises, so it sees optimizer steps whatever the loop looks like: accumulation and gradient
    checkpointing do not count double. `OIALRUpdater.step` calls `reset`.
    """

    def __init__(self, first_update: int) -> None:
        self.first_update = first_update
        self._steps = 0
        self._watched: int | None = None
        self._version = -1
        self._warned = False

    def reset(self) -> None:
        self._steps = 0

    def observe(self, parameter: torch.Tensor) -> None:
        if self._warned or torch.compiler.is_compiling():
            return
        if self._watched is None:
            self._watched, self._version = id(parameter), parameter._version
        if id(parameter) != self._watched or parameter._version == self._version:
            return
        self._version = parameter._version
        self._steps += 1
        if self._steps > self.first_update:
            self._warned = True
            warnings.warn(
                f"{self._steps} optimizer steps were taken, but the OIALR update due at step {self.first_update} was "
                "never made: ranks and bases stay as they are. Pass `callbacks=[OIALRCallback()]` to the Trainer, or "
                "call `updater.step()` of an `OIALRUpdater(model, optimizer)` after every `optimizer.step()`.",
                OIALRWarning,
                stacklevel=2,
            )
