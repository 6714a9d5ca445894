"""When a layer leaves the full-rank phase by its own basis."""

import pytest

from oialr_peft.policy import Settling


SETTLING = Settling.over(600, 30)


@pytest.mark.parametrize(
    ("total", "interval", "every"), [(600, 30, 30), (600, 10, 30), (600, 50, 50), (100_000, 400, 4800), (20, 1, 1)]
)
def test_a_basis_is_measured_at_updates_about_twenty_times_in_a_run(total, interval, every):
    settling = Settling.over(total, interval)
    assert settling.every == every
    measured = [step for step in range(1, total + 1) if settling.is_measured(step)]
    assert measured == list(range(every, total // 2 + 1, every))


@pytest.mark.parametrize(
    ("stabilities", "step", "waits"),
    [
        ([], 90, True),
        ([0.99, 0.99], 90, True),  # two could be chance
        ([0.99, 0.99, 0.99], 120, False),
        ([0.99, 0.99, 0.99], 59, True),  # a tenth of the run is not over
        ([0.4, 0.6, 0.75, 0.85], 150, True),  # climbs
        ([0.8, 0.45, 0.55], 120, True),  # fell, and climbs
        ([0.4, 0.6, 0.75, 0.85, 0.88, 0.9], 210, True),
        ([0.4, 0.6, 0.75, 0.85, 0.88, 0.9, 0.91, 0.915], 240, False),  # the steep part is over
        ([0.97, 0.99, 0.96], 120, False),  # up and down, by chance
        ([0.3, 0.31, 0.3], 120, False),  # turns at a steady pace, and will go on so
        ([0.4, 0.6, 0.75], 299, True),
        ([0.4, 0.6, 0.75], 300, False),  # half of the run is over
        ([], 300, False),
    ],
)
def test_a_layer_waits_while_its_stability_climbs(stabilities, step, waits):
    assert SETTLING.waits(stabilities, step) is waits
