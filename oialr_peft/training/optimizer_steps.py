"""Counts the steps that an optimizer really takes."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import nn

from ..missed_update import skipped_step


class Around(Protocol):
    """What wants to be called right before each step of an optimizer, and right after it unless it was skipped."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None: ...
    def after_step(self, optimizer: torch.optim.Optimizer) -> None: ...


class _Steps:
    """The steps of one optimizer. A class that calls its parent's `step` fires torch's hooks for both: one step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.total = self.depth = self.loads = 0
        self.around: list[weakref.ref[Around]] = []
        optimizer.register_step_pre_hook(self._begin)
        optimizer.register_step_post_hook(self._end)
        optimizer.register_load_state_dict_post_hook(self._load)

    def listening(self) -> list[Around]:
        return [found for ref in self.around if (found := ref()) is not None]

    def _begin(self, optimizer: torch.optim.Optimizer, *_) -> None:
        if self.depth and not _is_within_step(inspect.currentframe(), optimizer):
            self.depth = 0  # the step before this one raised, and the loop goes on
        self.depth += 1
        if self.depth == 1:
            for around in self.listening():
                around.before_step(optimizer)

    def _end(self, optimizer: torch.optim.Optimizer, *_) -> None:
        self.depth -= 1
        if self.depth == 0 and not skipped_step(optimizer):
            self.total += 1
            for around in self.listening():
                around.after_step(optimizer)

    def _load(self, _: torch.optim.Optimizer) -> None:
        self.loads += 1


def _is_within_step(hook: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step that calls a hook, in whose frame it is, was called within another one of the optimizer.

    Both run the wrapper that torch puts around every `step`, which calls its optimizer `self`.
    """
    frame = hook.f_back
    wrapper = frame.f_code
    while (frame := frame.f_back) is not None:
        if frame.f_code is wrapper and frame.f_locals.get("self") is optimizer:
            return True
    return False


# One for each optimizer, for good: hooks that are removed while torch goes through them end the step with an error.
_STEPS: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Steps] = weakref.WeakKeyDictionary()


def _steps_of(optimizer: torch.optim.Optimizer) -> _Steps:
    if optimizer not in _STEPS:
        _STEPS[optimizer] = _Steps(optimizer)
    return _STEPS[optimizer]


def loads_of(optimizer: torch.optim.Optimizer) -> int:
    """How often a state was loaded into the optimizer since this was first asked."""
    return _steps_of(optimizer).loads


def around_steps(
    optimizer: torch.optim.Optimizer, new: Around, replaced: Callable[[Around], bool], *, first: bool = False
) -> None:
    """Call `new` around the steps of an optimizer for as long as it lives, and those that it replaces no more.

    It is called after all others, or before them with `first`.
    """
    steps = _steps_of(optimizer)
    others = [weakref.ref(old) for old in steps.listening() if not replaced(old)]
    steps.around = [weakref.ref(new), *others] if first else [*others, weakref.ref(new)]


class OptimizerSteps:
    """The steps of one torch optimizer from now on, counted by torch's own hooks.

    So it does not matter how often, or in which place, a loop asks: micro-batches of an accumulation window and steps
    that a gradient scaler skipped are no steps, in a loop of one's own as under Accelerate.

    Attributes:
        trained: places of the parameters that were not frozen in all of the steps that were last asked for.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
        self._counter = _steps_of(optimizer)
        self._began = self._asked = self._counter.total
        self._parameters = list(parameters)
        self.trained = self._all = frozenset(range(len(self._parameters)))
        self._training: set[int] = set()
        around_steps(optimizer, self, replaced=lambda _: False)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is to be done."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """A loop may freeze them before it asks, so look now."""
        self._training |= {place for place, parameter in enumerate(self._parameters) if parameter.requires_grad}

    @property
    def at(self) -> tuple[int, int]:
        """Which step of which optimizer was the last one."""
        return id(self._counter), self._counter.total

    @property
    def any(self) -> bool:
        """Whether there was one at all."""
        return self._counter.total > self._began

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse, for the updater that holds this: its copy would wait for the steps of another's optimizer."""
        raise TypeError(
            "An OIALRUpdater counts the steps of its own optimizer, so it cannot be copied or pickled. Copy model and "
            "optimizer, make an updater for them, and hand the state over: "
            "`OIALRUpdater(model, optimizer).load_state_dict(updater.state_dict())`."
        )

    @property
    def pending(self) -> int:
        """The steps that were taken and not asked for yet."""
        return self._counter.total - self._asked

    def wait_for(self, pending: int) -> None:
        """Forget the steps so far, but for so many that the next call of `since_last_asked` counts."""
        self.since_last_asked()
        self._asked -= pending
        if pending:
            self._training = set(self._all)

    def since_last_asked(self) -> int:
        """How many steps were taken since the last call of this, which comes between steps."""
        new, self._asked = self._counter.total - self._asked, self._counter.total
        self.trained, self._training = frozenset(self._training) if new else self._all, set()
        return new


class GradientWatch:
    """Whether a gradient came to any of some parameters since this was made.

    Before the first step it tells a loop whose step was skipped, and whose gradients are gone already, from calls
    without any training. To be ended once that is known.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.came, me = False, weakref.ref(self)

        def note(_: torch.Tensor) -> None:
            if (watch := me()) is not None:
                watch.came = True

        self._hooks = [parameter.register_post_accumulate_grad_hook(note) for parameter in parameters]

    def end(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
