"""A cut by activations: no matrix of the rank is nearer on what was seen, whichever side it was seen on."""

import pytest
import torch

from oialr_peft.linalg import Seen, activations, cut_by_activations, rotate, second_moment, seen_spectrum


def coloured(samples, size):
    """Samples that vary more in some directions than in others."""
    turn = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    return torch.randn(samples, size, dtype=torch.float64) * torch.linspace(3, 0.05, size, dtype=torch.float64) @ turn


@pytest.fixture(params=[(24, 16), (16, 24), (20, 20)], ids=str)
def case(request, monkeypatch):
    """A matrix, inputs of it, and gradients of its outputs."""
    monkeypatch.setattr(activations, "RIDGE", 1e-12)
    torch.manual_seed(0)
    rows, cols = request.param
    return torch.randn(rows, cols, dtype=torch.float64), coloured(300, cols), coloured(300, rows)


def ways(matrix, x, dy=None):
    """What was seen, on each side, and the same of the transposed matrix."""
    moments = (second_moment(x), second_moment(x @ matrix.mT))
    felt = (None, None) if dy is None else (second_moment(dy @ matrix), second_moment(dy))
    seen = [Seen("right", moments[0], felt[0]), Seen("left", felt[1], moments[1])]
    return [(matrix, it, False) for it in seen] + [(matrix.mT.contiguous(), it.flipped, True) for it in seen]


def product(rotation, transposed=False):
    kept = (rotation.left * rotation.singular_values.unsqueeze(-2)) @ rotation.right.mT
    return kept.mT if transposed else kept


def lost(matrix, kept, x, weigh):
    """The squared error of outputs, as a share."""
    return float(((x @ (matrix - kept).mT) @ weigh).square().sum() / ((x @ matrix.mT) @ weigh).square().sum())


def test_without_gradients_outputs_are_as_near_as_their_own_svd(case):
    matrix, x, _ = case
    values = torch.linalg.svdvals(x @ matrix.mT)
    best = float(values[5:].square().sum() / values.square().sum())
    for core, seen, transposed in ways(matrix, x):
        rotation, dropped = cut_by_activations(core, 5, seen)
        identity = torch.eye(len(matrix), dtype=torch.float64)
        assert lost(matrix, product(rotation, transposed), x, identity) == pytest.approx(best, rel=1e-6)
        assert dropped == pytest.approx(best, rel=1e-6)
        assert rotation.rank == 5
        for basis in (rotation.left, rotation.right):
            torch.testing.assert_close(basis.mT @ basis, torch.eye(5, dtype=torch.float64))
        assert torch.equal(rotation.singular_values, rotation.singular_values.sort(descending=True).values)


def test_with_gradients_outputs_are_nearest_where_the_loss_feels_them(case):
    matrix, x, dy = case
    values, vectors = torch.linalg.eigh(second_moment(dy))
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    found = torch.linalg.svdvals(x @ matrix.mT @ root)
    best = float(found[5:].square().sum() / found.square().sum())
    plain = lost(matrix, product(rotate(matrix).cut(5)), x, root)
    for core, seen, transposed in ways(matrix, x, dy):
        rotation, dropped = cut_by_activations(core, 5, seen)
        assert lost(matrix, product(rotation, transposed), x, root) == pytest.approx(best, rel=1e-6)
        assert dropped == pytest.approx(best, rel=1e-6)
        assert best < 0.5 * plain


def test_at_full_rank_nothing_changes(case):
    matrix, x, dy = case
    for core, seen, _ in ways(matrix, x, dy):
        rotation, dropped = cut_by_activations(core, min(core.shape), seen)
        smaller = (core.shape[-1] <= core.shape[-2]) == (seen.side == "right") or core.shape[0] == core.shape[1]
        if smaller:  # on the longer side a rank of the shorter one is a cut
            torch.testing.assert_close(product(rotation), core)
        assert dropped == pytest.approx(0, abs=1e-9)


def test_several_matrices_at_once_are_cut_as_one_by_one_and_one_without_samples_is_cut_plainly():
    torch.manual_seed(0)
    matrices, x = torch.randn(3, 10, 8, dtype=torch.float64), torch.randn(3, 50, 8, dtype=torch.float64)
    moments = x.mT @ x
    moments[2] = 0
    together, _ = cut_by_activations(matrices, 3, Seen("right", moments))
    for matrix, moment, found in zip(matrices[:2], moments, product(together), strict=False):
        alone, _ = cut_by_activations(matrix, 3, Seen("right", moment))
        torch.testing.assert_close(found, product(alone))
    torch.testing.assert_close(product(together)[2], product(rotate(matrices[2]).cut(3)))


def test_few_samples_keep_what_they_show_and_the_leading_rest():
    torch.manual_seed(0)
    matrix, x = torch.randn(32, 32, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    kept = product(cut_by_activations(matrix, 8, Seen("right", second_moment(x)))[0])
    plain = product(rotate(matrix).cut(8))
    others, identity = torch.randn(500, 32, dtype=torch.float64), torch.eye(32, dtype=torch.float64)
    assert lost(matrix, kept, x, identity) < 0.02 < lost(matrix, plain, x, identity)
    assert lost(matrix, kept, others, identity) < 1.2 * lost(matrix, plain, others, identity)


def test_what_overflowed_is_left_out():
    torch.manual_seed(0)
    spoilt, moment = torch.full((4, 4), torch.nan), second_moment(torch.randn(9, 4))
    core = torch.randn(4, 4)
    alone, _ = cut_by_activations(core, 2, Seen("right", moment))
    both, _ = cut_by_activations(core, 2, Seen("right", moment, spoilt))
    assert torch.equal(product(alone), product(both))
    assert cut_by_activations(core, 2, Seen("right", spoilt)) is None


def test_the_spectrum_of_what_was_seen_tells_what_any_cut_loses(case):
    matrix, x, dy = case
    for core, seen, _ in ways(matrix, x, dy):
        energies = seen_spectrum(core, seen).square()
        assert torch.equal(energies, energies.sort(descending=True).values)
        for rank in (1, 5, 12):
            _, dropped = cut_by_activations(core, rank, seen)
            assert dropped == pytest.approx(float(energies[rank:].sum() / energies.sum()), rel=1e-6)


@pytest.mark.parametrize("size", [1, 8, 40])
def test_there_is_no_spectrum_where_there_is_no_telling(size):
    torch.manual_seed(0)
    core, whole = torch.randn(size, size), torch.eye(size)
    assert seen_spectrum(core, Seen("right", whole, whole)) is not None
    for spoilt in (None, torch.full((size, size), torch.inf), torch.zeros(size, size)):
        assert seen_spectrum(core, Seen("right", whole, spoilt)) is None
        assert seen_spectrum(core, Seen("right", spoilt, whole)) is None
    assert seen_spectrum(core * torch.nan, Seen("right", whole, whole)) is None


def test_a_group_through_which_nothing_went_is_worth_nothing():
    torch.manual_seed(0)
    cores, moments = torch.randn(3, 6, 4), torch.eye(4).repeat(3, 1, 1)
    moments[1] = 0
    values = seen_spectrum(cores, Seen("right", moments, moments))
    assert not values[1].any()
    assert values[0].all()


def test_a_half_precision_core_has_its_spectrum_in_full():
    seen = Seen("right", 1e8 * torch.eye(4), 1e8 * torch.eye(4))
    assert seen_spectrum(torch.eye(4, dtype=torch.float16), seen).isfinite().all()
