"""Every order gives the same product, and no more is kept than backward needs."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from oialr_peft.layers.product import FactoredLinear, linear


def operands(batch, n_in, rank, n_out):
    def draw(*shape, grad=False):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)

    return (
        draw(2, batch // 2, n_in, grad=True),
        draw(n_out, rank),
        draw(rank, rank, grad=True),
        draw(rank, n_in),
        draw(n_out, grad=True),
    )


# Few rows (sigma times rows), many (sigma folded into both factors, into one of them), and the rebuilt weight.
SIZES = [(6, 20, 10, 20), (400, 30, 20, 90), (40, 90, 20, 30), (400, 32, 32, 32)]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_product_and_its_gradients_are_those_of_the_dense_weight(sizes):
    x, u, sigma, vh, bias = operands(*sizes)
    dense = x @ (u @ sigma @ vh).T + bias
    found = linear(x, u, sigma, vh, bias)
    torch.testing.assert_close(found, dense)
    wanted = torch.autograd.grad(dense.square().sum(), (x, sigma, bias))
    for got, want in zip(torch.autograd.grad(found.square().sum(), (x, sigma, bias)), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("sizes", [(6, 5, 3, 4), (2, 5, 3, 4)])
def test_first_and_second_derivatives_agree_with_finite_differences(sizes):
    x, u, sigma, vh, bias = operands(*sizes)

    def product(x, sigma, bias):
        return FactoredLinear.apply(x, u, sigma, vh, bias)[0]

    assert gradcheck(product, (x, sigma, bias))
    assert gradgradcheck(product, (x, sigma, bias))


def test_only_rows_times_rank_are_kept_for_backward():
    x, u, sigma, vh, _ = operands(400, 64, 8, 64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda tensor: tensor):
        linear(x, u, sigma, vh)
    assert sorted(kept) == sorted([u.shape, sigma.shape, vh.shape, (2, 200, 8)])


def test_an_input_that_needs_no_gradient_gets_none():
    x, u, sigma, vh, bias = operands(6, 5, 3, 4)
    x = x.detach()
    linear(x, u, sigma, vh, bias).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(sigma.grad, (torch.ones(6, 4, dtype=x.dtype) @ u).T @ (x.reshape(6, 5) @ vh.T))


def test_batches_of_any_shape_pass():
    _, u, sigma, vh, bias = operands(2, 5, 3, 4)
    for shape in ((0, 5), (5,), (2, 0, 5), (2, 3, 1, 5)):
        x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        y = linear(x, u, sigma, vh, bias)
        assert y.shape == (*shape[:-1], 4)
        y.sum().backward()
        assert x.grad.shape == shape
