"""When an update is due and how many layers take part. Plain arithmetic on optimizer steps."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass


def share_of(total: int, share: float) -> int:
    """A share of a number, rounded down; 0.29 of 100, which is 28.999999999999996 in floating point, is 29."""
    return math.floor(share * total + 1e-9)


@dataclass(frozen=True)
class Schedule:
    """The schedule of the paper's algorithm 2, as a function of the number of optimizer steps taken.

    `delay` (d): full-rank steps before the layers are factorised; 0 means they were factorised at injection.
    `update_interval` (ν): steps between updates. `layer_step` (α): share of the layers that joins at each update,
    the last layers first.
    """

    delay: int
    update_interval: int
    layer_step: float

    def update_number(self, step: int) -> int | None:
        """1 for the first update, 2 for the second, ...; None where no update is due after optimizer step `step`.

        With a delay the first update falls on step `delay`, together with factorisation; without one on step
        `update_interval`.
        """
        since = step - self.first
        if since < 0 or since % self.update_interval:
            return None
        return since // self.update_interval + 1

    @property
    def first(self) -> int:
        """The step of the first update."""
        return self.delay or self.update_interval

    def last_by(self, step: int) -> int:
        """The step of the last update until `step`; of the first one where none is made until then."""
        return self.first + max(0, step - self.first) // self.update_interval * self.update_interval

    def layers_due(self, update_number: int, total: int) -> int:
        """How many of `total` layers, counted from the last, take part in the update of this number; at least 1."""
        return min(total, max(1, share_of(total, update_number * self.layer_step)))


@dataclass(frozen=True)
class Approach:
    """How ranks go down to what they are to be in the end: fast at first, while there is time to make up for it.

    The cubic of gradual pruning (Zhu and Gupta 2017), by updates `interval` steps apart: what is left of the way falls
    as the cube of the time that is left, to nothing at step `last`.
    """

    last: int
    interval: int

    def way(self, step: int) -> float:
        """The share of the way from the present ranks to the final ones that the update after `step` goes."""
        left = max(0, self.last - step)
        return 1 - (left / (left + self.interval)) ** 3


NEVER = Schedule(delay=0, update_interval=sys.maxsize, layer_step=1.0)  # no update in any run


UPDATES = 20  # of a run, where the interval is derived from its length
LONGEST_INTERVAL = 400


def default_interval(delay: int, total_steps: int | None) -> int:
    """The steps between updates by which every layer comes due in time."""
    if total_steps is None:
        return LONGEST_INTERVAL
    return min(LONGEST_INTERVAL, max(1, (total_steps - delay) // UPDATES))


def whole_steps(total_steps: int | float | None) -> int | None:
    """The length of a run, of whatever type of number, as an int.

    Raises:
        ValueError: it is no whole number, or below 0.
    """
    if total_steps is None:
        return None
    if total_steps < 0 or total_steps != int(total_steps):
        raise ValueError(
            f"`total_steps` must be the number of the run's optimizer steps, a whole one; got {total_steps!r}. Leave "
            "it out where it is not known, round it up where epochs end in the middle."
        )
    return int(total_steps)


def steps_of(name: str, value: int | float, total_steps: int | None) -> int:
    """A number of optimizer steps; a float is a share of the run.

    Raises:
        ValueError: it is a share, and the length of the run is not known.
    """
    if isinstance(value, int):
        return value
    if total_steps is None:
        raise ValueError(
            f"`{name}={value}` is a share of the run, whose length is not known here. Pass "
            f"`OIALRUpdater(model, optimizer, total_steps=...)`, or give `{name}` in optimizer steps."
        )
    return max(1, round(value * total_steps))
