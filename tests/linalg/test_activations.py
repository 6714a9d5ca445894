"""A cut by activations: no matrix of the rank is nearer in its outputs, whichever side they were seen on."""

import pytest
import torch

from oialr_peft.linalg import Activations, activations, cut_by_activations, rotate, second_moment


@pytest.fixture(params=[(24, 16), (16, 24), (20, 20)], ids=str)
def case(request, monkeypatch):
    """A matrix, and inputs for it that vary more in some directions than in others."""
    monkeypatch.setattr(activations, "RIDGE", 1e-12)
    torch.manual_seed(0)
    rows, cols = request.param
    turn = torch.linalg.qr(torch.randn(cols, cols, dtype=torch.float64)).Q
    x = torch.randn(300, cols, dtype=torch.float64) * torch.linspace(3, 0.05, cols, dtype=torch.float64) @ turn
    return torch.randn(rows, cols, dtype=torch.float64), x


def ways(matrix, x):
    """What was seen, on each side, and the same of the transposed matrix."""
    seen = [
        Activations(second_moment(x), "right", inputs=True),
        Activations(second_moment(x @ matrix.mT), "left", inputs=False),
    ]
    return [(matrix, it, False) for it in seen] + [(matrix.mT.contiguous(), it.flipped, True) for it in seen]


def test_outputs_are_as_near_as_their_own_svd(case):
    matrix, x = case
    outputs = x @ matrix.mT
    values = torch.linalg.svdvals(outputs)
    best = float(values[5:].square().sum() / values.square().sum())
    for core, seen, transposed in ways(matrix, x):
        rotation, dropped = cut_by_activations(core, 5, seen)
        kept = (rotation.left * rotation.singular_values) @ rotation.right.mT
        kept = kept.mT if transposed else kept
        assert rotation.rank == 5
        assert float((x @ kept.mT - outputs).square().sum() / outputs.square().sum()) == pytest.approx(best, rel=1e-6)
        assert dropped == pytest.approx(best, rel=1e-6)
        for basis in (rotation.left, rotation.right):
            torch.testing.assert_close(basis.mT @ basis, torch.eye(5, dtype=torch.float64))
        assert torch.equal(rotation.singular_values, rotation.singular_values.sort(descending=True).values)


def test_at_full_rank_nothing_changes(case):
    matrix, x = case
    for core, seen, _ in ways(matrix, x):
        rotation, dropped = cut_by_activations(core, min(core.shape), seen)
        torch.testing.assert_close((rotation.left * rotation.singular_values) @ rotation.right.mT, core)
        assert dropped == pytest.approx(0, abs=1e-9)


def test_several_matrices_at_once_are_cut_as_one_by_one_and_one_without_samples_is_cut_plainly():
    torch.manual_seed(0)
    matrices, x = torch.randn(3, 10, 8, dtype=torch.float64), torch.randn(3, 50, 8, dtype=torch.float64)
    moments = x.mT @ x
    moments[2] = 0
    together, _ = cut_by_activations(matrices, 3, Activations(moments, "right", inputs=True))
    products = (together.left * together.singular_values.unsqueeze(-2)) @ together.right.mT
    for matrix, moment, product in zip(matrices[:2], moments, products, strict=False):
        alone, _ = cut_by_activations(matrix, 3, Activations(moment, "right", inputs=True))
        torch.testing.assert_close(product, (alone.left * alone.singular_values) @ alone.right.mT)
    plain = rotate(matrices[2]).cut(3)
    torch.testing.assert_close(products[2], (plain.left * plain.singular_values) @ plain.right.mT)


def test_few_samples_keep_what_they_show_and_the_leading_rest():
    torch.manual_seed(0)
    matrix, x = torch.randn(32, 32, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    rotation, _ = cut_by_activations(matrix, 8, Activations(second_moment(x), "right", inputs=True))
    kept = (rotation.left * rotation.singular_values) @ rotation.right.mT
    plain = rotate(matrix).cut(8)
    of_plain = (plain.left * plain.singular_values) @ plain.right.mT

    def error(product, x):
        return float((x @ (product - matrix).mT).norm() / (x @ matrix.mT).norm())

    assert error(kept, x) < 0.1 < error(of_plain, x)
    others = torch.randn(500, 32, dtype=torch.float64)
    assert error(kept, others) < 1.1 * error(of_plain, others)


def test_what_is_not_finite_is_not_cut_by():
    moment = torch.full((4, 4), torch.nan)
    assert cut_by_activations(torch.randn(4, 4), 2, Activations(moment, "right", inputs=True)) is None
