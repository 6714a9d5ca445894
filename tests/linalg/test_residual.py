"""The leading directions of a weight: the same wherever they are found."""

import pytest
import torch

from oialr_peft.linalg import leading_directions, probe_bases, residual, rotate, same
from oialr_peft.linalg.rotation import Rotation


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (3, 8, 10)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_they_span_what_an_svd_finds(shape, dtype):
    matrix = torch.randn(shape).to(dtype)
    found = leading_directions(matrix, 4, "svd")
    rotation = rotate(matrix.double()).cut(4)
    for ours, theirs in ((found.left, rotation.left), (found.right.mT, rotation.right)):
        ours = ours.double()
        torch.testing.assert_close(ours @ ours.mT, theirs @ theirs.mT, atol=2e-3, rtol=0)
    assert found.left.dtype == torch.float16
    assert found.largest == pytest.approx(float(rotation.singular_values.max()))


def test_the_signs_of_the_decomposition_do_not_matter(monkeypatch):
    matrix = torch.randn(20, 12)
    found = leading_directions(matrix, 5, "svd")
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)

    def flipped(work, rank, method):
        rotation = rotate(work).cut(rank)
        return Rotation(rotation.left * signs, rotation.singular_values, rotation.right * signs)

    monkeypatch.setattr(residual, "decompose", flipped)
    again = leading_directions(matrix, 5, "svd")
    assert torch.equal(again.left, found.left)
    assert torch.equal(again.right, found.right)
    assert again.fingerprint == found.fingerprint


def test_a_fingerprint_tells_weights_bases_and_signs_apart():
    matrix = torch.randn(64, 48)
    found = leading_directions(matrix, 6, "svd")
    assert same(found.fingerprint, leading_directions(matrix.clone(), 6, "svd").fingerprint)
    for other in (matrix.bfloat16(), matrix + 1e-3 * torch.randn(64, 48), -matrix, matrix.flip(0)):
        assert not same(found.fingerprint, leading_directions(other, 6, "svd").fingerprint)
    for column in range(6):
        signs = torch.ones(6, dtype=torch.float16)
        signs[column] = -1
        assert not same(found.fingerprint[1:], probe_bases(found.left * signs, found.right * signs.unsqueeze(1)))


def test_a_weight_of_zeros_and_one_that_is_not_finite():
    found = leading_directions(torch.zeros(8, 6), 2, "svd")
    assert found.largest == 0
    assert same(found.fingerprint, leading_directions(torch.zeros(8, 6), 2, "svd").fingerprint)
    assert leading_directions(torch.full((8, 6), float("nan")), 2, "svd") is None
