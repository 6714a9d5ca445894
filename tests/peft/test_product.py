"""Every order gives the same product, and no more is kept than backward needs."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from oialr_peft.layers.product import FactoredLinear, linear
from tests.peft.test_layer_kinds import CONVS, adapt


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


def kept_shapes(forward):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda tensor: tensor):
        forward()
    return kept


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
    kept = kept_shapes(lambda: linear(x, u, sigma, vh))
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


def test_per_sample_gradients_by_torch_func():
    x, u, sigma, vh, _ = operands(6, 5, 3, 4)

    def loss(sigma, row):
        return linear(row, u, sigma, vh).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(sigma.detach(), x.detach())
    for gradient, row in zip(found, x.detach(), strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(loss(sigma, row), sigma)[0])


def factored_conv(name):
    """A convolution of rank 2 in float64, its input, and a dense one with the same kernel."""
    layer, x = (part.double() for part in CONVS[name]())
    dense = copy.deepcopy(layer)
    factored = adapt(layer, r=2).base_model.model.layer
    dense.weight.data = factored.adapter_weight("default")
    return factored, dense, x.requires_grad_()


@pytest.mark.parametrize("name", CONVS)
def test_the_gradients_of_a_convolution_are_those_of_its_dense_kernel(name):
    factored, dense, x = factored_conv(name)
    sigma = factored.parameter("default")
    found, expected = factored(x), dense(x)
    torch.testing.assert_close(found, expected)
    dx, dsigma = torch.autograd.grad(found.square().sum(), (x, sigma))
    wanted, kernel = torch.autograd.grad(expected.square().sum(), (x, dense.weight))
    u, _, vh = factored.factors("default")
    torch.testing.assert_close(dx, wanted)
    torch.testing.assert_close(dsigma, u.mT @ kernel.reshape(factored.matrix_shape) @ vh.mT)


def test_second_derivatives_of_a_convolution():
    factored, _, x = factored_conv("conv2d groups")
    assert gradgradcheck(factored, (x,))


def test_a_convolution_keeps_its_inner_channels_only():
    factored, _, x = factored_conv("conv2d")
    kept = kept_shapes(lambda: factored(x))
    u, sigma, vh = factored.factors("default")
    assert sorted(kept) == sorted([u.shape, sigma.shape, vh.shape, (2, 2, *factored(x).shape[2:])])


@pytest.mark.parametrize("make", [lambda: (nn.Linear(32, 24), torch.randn(64, 32)), CONVS["conv1d"]])
def test_gradients_under_autocast_are_close_and_in_the_dtypes_of_the_leaves(make):
    layer, x = make()
    factored = adapt(layer, r=3).base_model.model.layer
    sigma = factored.parameter("default")
    x.requires_grad_()
    exact = torch.autograd.grad(factored(x).square().mean(), (x, sigma))
    with torch.autocast("cpu", torch.bfloat16):
        y = factored(x)
    assert y.dtype == torch.bfloat16
    for got, want in zip(torch.autograd.grad(y.float().square().mean(), (x, sigma)), exact, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.05 * float(want.abs().max()))
