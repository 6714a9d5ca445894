"""When a layer leaves the full-rank phase, where its own basis is to say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


EARLIEST, LATEST = 0.1, 0.5  # shares of the run
MEASURES = 20  # in a run, were it measured to its end
LOOKED_AT = 3  # of the last stabilities
RISE = 0.02  # of the last above the lowest of them, at most, where a basis has settled


@dataclass(frozen=True)
class Settling:
    """The plateau test of `delay="auto"`, on the paper's measure of stability.

    Every `every` optimizer steps the basis U Vᵀ of a layer is compared with what it was at the last measure: 1 where
    it stayed. Early in a run that number climbs steeply. A layer leaves once it has all but stopped climbing, over
    three measures: not before step `earliest`, and all do at the first update from step `latest` on.
    """

    every: int
    earliest: int
    latest: int

    @classmethod
    def over(cls, total_steps: int, interval: int) -> Settling:
        """For a run of so many steps, with updates `interval` steps apart: a basis is measured at updates."""
        every = interval * max(1, round(total_steps / MEASURES / interval))
        return cls(every, round(EARLIEST * total_steps), round(LATEST * total_steps))

    def is_measured(self, step: int, taken: int = 1) -> bool:
        """Whether bases are measured after this step, or were to be after one of the `taken` ones up to it."""
        since = step - taken
        return since < self.latest and step // self.every > since // self.every

    def waits(self, stabilities: Sequence[float], step: int) -> bool:
        """Whether a layer with these stabilities so far stays dense after this step."""
        if step >= self.latest:
            return False
        last = stabilities[-LOOKED_AT:]
        settled = len(last) == LOOKED_AT and last[-1] - min(last) <= RISE
        return step < self.earliest or not settled
