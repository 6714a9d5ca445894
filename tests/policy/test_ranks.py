"""The rank rule."""

import pytest
import torch

from oialr_peft.policy import LayerFacts, RankRule, select_rank


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
    spectrum = torch.tensor(values, dtype=torch.float32)
    assert select_rank(spectrum, LayerFacts((full, full), spectrum.shape[-1], full), rule) == expected


def spectrum_of(rows: int, cols: int, signal: list[float], noise: float = 1.0) -> torch.Tensor:
    """Singular values of directions with these values in Gaussian noise, whose own reach about √rows + √cols."""
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(rows, len(signal))).Q, torch.linalg.qr(torch.randn(cols, len(signal))).Q
    return torch.linalg.svdvals(left @ torch.diag(torch.tensor(signal)) @ right.mT + noise * torch.randn(rows, cols))


@pytest.mark.parametrize(("rows", "cols"), [(60, 60), (40, 160)])
@pytest.mark.parametrize("outlier", [None, 1e5])
def test_the_optimal_rule_keeps_what_rises_above_noise_whatever_the_outliers(rows, cols, outlier):
    signal = [90.0, 70.0, 60.0, 55.0, 50.0]
    spectrum = spectrum_of(rows, cols, signal if outlier is None else [outlier, *signal[1:]])
    fact = LayerFacts((rows, cols), min(rows, cols), min(rows, cols))
    rule = RankRule(0.1, 0.5, 0.0, kind="optimal")
    assert select_rank(spectrum, fact, rule) == 5
    assert select_rank(spectrum[:5], LayerFacts((rows, cols), 5, min(rows, cols)), rule) == 5


def test_an_outlier_lifts_the_bar_of_the_energy_rule_less():
    values = torch.tensor([100.0] + [1.0] * 999)
    fact = LayerFacts((1000, 1000), 1000, 1000)
    assert select_rank(values, fact, RankRule(0.1, 1.0, 0.0)) == 1
    assert select_rank(values, fact, RankRule(0.1, 1.0, 0.0, kind="energy")) == 1000


@pytest.mark.parametrize("kind", ["relative", "energy", "optimal"])
def test_what_was_kept_is_kept_again(kind):
    fact, rule = LayerFacts((60, 60), 60, 60), RankRule(0.4, 1.0, 0.0, kind=kind)
    spectrum = spectrum_of(60, 60, [90.0, 70.0, 60.0, 55.0, 50.0])
    kept = select_rank(spectrum, fact, rule)
    assert 1 < kept < 60
    assert select_rank(spectrum[:kept], LayerFacts((60, 60), kept, 60), rule) == kept
