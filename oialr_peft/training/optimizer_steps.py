"""Counts the steps that an optimizer really takes."""

from __future__ import annotations

import weakref

import torch


class OptimizerSteps:
    """The steps of one torch optimizer, counted by torch's own hook.

    So it does not matter how often, or in which place, a loop asks: micro-batches of an accumulation window and steps
    that a gradient scaler skipped are no steps, in a loop of one's own as under Accelerate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.total = 0
        self._asked = 0
        steps = weakref.ref(self)
        handle = optimizer.register_step_post_hook(lambda *_: _count(steps()))
        weakref.finalize(self, handle.remove)

    def since_last_asked(self) -> int:
        """How many steps were taken since the last call of this."""
        new, self._asked = self.total - self._asked, self.total
        return new


def _count(steps: OptimizerSteps | None) -> None:
    if steps is not None:
        steps.total += 1
