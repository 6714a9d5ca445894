"""The rank rule."""

import pytest
import torch

from oialr_peft.policy import RankRule, select_rank


FREE = RankRule(sigma_cutoff=0.1, max_cut=1.0, min_rank=0.0)


@pytest.mark.parametrize(
    ("values", "rule", "full", "expected"),
    [
        ([10, 5, 1, 0.9], FREE, 4, 3),  # a value on the threshold stays
        ([10, 5, 1, 1], FREE, 4, 4),  # ties stay together
        ([0, 0, 0], FREE, 3, 3),  # the zero matrix is not cut
        ([1, 0, 0, 0], RankRule(0.5, 0.5, 0.0), 4, 2),  # at most half goes
        ([1, 0, 0, 0, 0], RankRule(0.5, 0.5, 0.0), 5, 3),  # never more than the share
        ([1, 0, 0, 0], RankRule(0.5, 1.0, 0.0), 4, 1),  # never below 1
        ([1, 0, 0, 0], RankRule(0.5, 1.0, 0.03), 100, 3),  # the floor is a share of the full rank
        ([1, 0], RankRule(0.5, 1.0, 0.5), 100, 2),  # a rank below the floor is not raised
        ([1, 0, 0, 0], RankRule(0.0, 1.0, 0.0), 4, 4),  # cutoff 0 never cuts
        ([1, 0, 0, 0], RankRule(0.5, 0.0, 0.0), 4, 4),  # max_cut 0 never cuts
        ([9, 8, 7, 6, 5, 0, 0, 0, 0], RankRule(0.5, 1.0, 0.0, multiple=4), 9, 8),  # rounded up to a multiple
        ([9] + [0] * 7, RankRule(0.5, 0.1, 0.0, multiple=4), 8, 4),  # one multiple may go, though max_cut says none
        ([9] + [0] * 7, RankRule(0.5, 0.0, 0.0, multiple=4), 8, 8),
        ([9, 8, 7, 6, 5, 4], RankRule(0.5, 1.0, 0.0, multiple=4), 6, 6),  # never above the present rank
        ([[9, 5, 1], [9, 1, 1]], RankRule(0.5, 1.0, 0.0), 3, 2),  # of several spectra the one that wants most decides
        ([1.0] + [0.0] * 99, RankRule(0.5, 0.29, 0.0), 100, 71),  # 0.29 * 100 is 28.999999999999996
    ],
)
def test_select_rank(values, rule, full, expected):
    assert select_rank(torch.tensor(values, dtype=torch.float32), full, rule) == expected
