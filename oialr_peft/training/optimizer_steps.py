"""Counts the steps that an optimizer really takes."""

from __future__ import annotations

import weakref

import torch


class _Counter:
    """The steps of one optimizer. A class that calls its parent's `step` fires torch's hooks for both: one step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.total = self.depth = 0
        optimizer.register_step_pre_hook(self._begin)
        optimizer.register_step_post_hook(self._end)

    def _begin(self, *_) -> None:
        self.depth += 1

    def _end(self, *_) -> None:
        self.depth -= 1
        self.total += self.depth == 0


# One for each optimizer, for good: hooks that are removed while torch goes through them end the step with an error.
_COUNTERS: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Counter] = weakref.WeakKeyDictionary()


class OptimizerSteps:
    """The steps of one torch optimizer from now on, counted by torch's own hooks.

    So it does not matter how often, or in which place, a loop asks: micro-batches of an accumulation window and steps
    that a gradient scaler skipped are no steps, in a loop of one's own as under Accelerate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer not in _COUNTERS:
            _COUNTERS[optimizer] = _Counter(optimizer)
        self._counter = _COUNTERS[optimizer]
        self._began = self._asked = self._counter.total

    @property
    def any(self) -> bool:
        """Whether there was one at all."""
        return self._counter.total > self._began

    def since_last_asked(self) -> int:
        """How many steps were taken since the last call of this, which comes between steps."""
        self._counter.depth = 0  # a step that raised did not end
        new, self._asked = self._counter.total - self._asked, self._counter.total
        return new
