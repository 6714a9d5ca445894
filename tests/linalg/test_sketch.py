"""A few numbers of a basis tell how far it turned."""

from dataclasses import replace

import pytest
import torch

from oialr_peft.linalg import polar, rotate, sketch, sketched_stability, stability


@pytest.mark.parametrize("noise", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)], ids=str)
def test_sketches_tell_the_stability(shape, noise):
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(shape, generator=generator)
    after = before + noise * torch.randn(shape, generator=generator)
    expected = stability(polar(before), polar(after))
    found = sketched_stability(sketch(rotate(before)), sketch(rotate(after)), 64)
    assert 1 - found == pytest.approx(1 - expected, rel=0.25)


def test_several_matrices_have_one_stability():
    torch.manual_seed(0)  # a seed of users, and not the probes'
    before = torch.randn(4, 40, 32)
    after = before + 0.3 * torch.randn(4, 40, 32)
    each = [stability(polar(one), polar(other)) for one, other in zip(before, after, strict=True)]
    found = sketched_stability(sketch(rotate(before)), sketch(rotate(after)), 4 * 32)
    assert 1 - found == pytest.approx(1 - sum(each) / 4, rel=0.2)


def test_signs_that_an_svd_leaves_open_cancel_and_a_scale_does_not_count():
    rotation = rotate(torch.randn(40, 32))
    flipped = replace(
        rotation, left=-rotation.left, right=-rotation.right, singular_values=rotation.singular_values * 3
    )
    assert torch.equal(sketch(rotation), sketch(flipped))
    assert sketched_stability(sketch(rotation), sketch(rotation), 32) == 1.0
