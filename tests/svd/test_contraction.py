"""Every order gives the same product; the cheapest is chosen."""

import pytest
import torch

from oialr_peft.svd import contract
from oialr_peft.svd.contraction import cheapest_order, forward_multiplications, multiplications


CASES = {  # order: (rows, n_in, rank, n_out)
    "chain": (6, 20, 10, 20),
    "fold_left": (400, 30, 20, 90),
    "fold_right": (400, 90, 20, 30),
    "rebuild": (400, 32, 32, 32),
}


@pytest.mark.parametrize(("order", "sizes"), CASES.items())
def test_contract_matches_the_dense_product_and_its_gradients(order, sizes):
    rows, n_in, rank, n_out = sizes
    assert cheapest_order(*sizes) == order
    a, b = torch.randn(n_in, rank, dtype=torch.float64), torch.randn(rank, n_out, dtype=torch.float64)
    x = torch.randn(2, rows // 2, n_in, dtype=torch.float64, requires_grad=True)
    sigma = torch.randn(rank, rank, dtype=torch.float64, requires_grad=True)
    dense = x @ (a @ sigma @ b)
    expected = torch.autograd.grad(dense.square().sum(), (x, sigma))
    found = contract(x, a, sigma, b)
    torch.testing.assert_close(found, dense)
    for got, want in zip(torch.autograd.grad(found.square().sum(), (x, sigma)), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_an_empty_batch_passes():
    a, sigma, b = torch.randn(5, 3), torch.randn(3, 3), torch.randn(3, 4)
    assert contract(torch.randn(0, 5), a, sigma, b).shape == (0, 4)


def test_rebuilding_is_for_high_rank_and_never_dearer_than_the_chain():
    assert cheapest_order(3072, 512, 512, 512) == "rebuild"
    assert cheapest_order(3072, 512, 64, 512) != "rebuild"
    costs = multiplications(3072, 512, 512, 512)
    assert costs["rebuild"] < 0.6 * costs["chain"]


def test_forward_multiplications_fall_with_the_rank():
    assert forward_multiplications(512, 128, 2048) == 128 * (512 + 2048)
    assert forward_multiplications(512, 512, 512) == 512 * 512
