"""When updates are due. Resume errors are off-by-one errors, so this is tested with integers."""

import pytest

from oialr_peft.policy.schedule import Schedule


@pytest.mark.parametrize(
    ("delay", "interval", "expected"),
    [(0, 4, {4: 1, 8: 2, 12: 3}), (3, 4, {3: 1, 7: 2, 11: 3}), (1, 1, {s: s for s in range(1, 13)})],
)
def test_update_numbers(delay, interval, expected):
    schedule = Schedule(delay, interval, 0.1)
    found = {step: schedule.update_number(step) for step in range(13)}
    assert {step: number for step, number in found.items() if number is not None} == expected


@pytest.mark.parametrize(
    ("share", "total", "expected"),
    [(0.1, 21, [2, 4, 6, 8, 10]), (0.1, 3, [1, 1, 1, 1, 1]), (1.0, 5, [5] * 5), (0.29, 100, [29, 58, 87, 100, 100])],
)
def test_layers_join_by_their_share(share, total, expected):
    schedule = Schedule(0, 1, share)
    assert [schedule.layers_due(number, total) for number in range(1, 6)] == expected
