"""Counts the steps that an optimizer really takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol

import torch


class Around(Protocol):
    """What wants to be called right before and after each step of an optimizer."""

    def before_step(self) -> None: ...
    def after_step(self, optimizer: torch.optim.Optimizer) -> None: ...


class _Steps:
    """The steps of one optimizer. A class that calls its parent's `step` fires torch's hooks for both: one step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.total = self.depth = 0
        self.around: list[weakref.ref[Around]] = []
        optimizer.register_step_pre_hook(self._begin)
        optimizer.register_step_post_hook(self._end)

    def listening(self) -> list[Around]:
        return [found for ref in self.around if (found := ref()) is not None]

    def _begin(self, *_) -> None:
        self.depth += 1
        if self.depth == 1:
            for around in self.listening():
                around.before_step()

    def _end(self, optimizer: torch.optim.Optimizer, *_) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.total += 1
            for around in self.listening():
                around.after_step(optimizer)


# One for each optimizer, for good: hooks that are removed while torch goes through them end the step with an error.
_STEPS: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Steps] = weakref.WeakKeyDictionary()


def _steps_of(optimizer: torch.optim.Optimizer) -> _Steps:
    if optimizer not in _STEPS:
        _STEPS[optimizer] = _Steps(optimizer)
    return _STEPS[optimizer]


def around_steps(optimizer: torch.optim.Optimizer, new: Around, replaced: Callable[[Around], bool]) -> None:
    """Call `new` around the steps of an optimizer for as long as it lives, and those that it replaces no more."""
    steps = _steps_of(optimizer)
    steps.around = [weakref.ref(old) for old in steps.listening() if not replaced(old)] + [weakref.ref(new)]


class OptimizerSteps:
    """The steps of one torch optimizer from now on, counted by torch's own hooks.

    So it does not matter how often, or in which place, a loop asks: micro-batches of an accumulation window and steps
    that a gradient scaler skipped are no steps, in a loop of one's own as under Accelerate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._counter = _steps_of(optimizer)
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
