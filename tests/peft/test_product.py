"""Every order gives the same product, and no more is kept than backward needs."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from oialr_peft.kinds.product import FoldedLinear, linear
from oialr_peft.linalg import cheapest_order
from tests.helpers import adapt
from tests.peft.test_layer_kinds import CONVS


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


def kept_size(forward, *own):
    """How many values autograd keeps, each storage once, without those of the tensors in `own`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda _: None):
        y = forward()  # alive until all is counted
    return sum(tensor.numel() for address, tensor in kept.items() if address not in known), y


SIZES = {"chain": (6, 20, 10, 20), "folded": (2000, 200, 100, 200), "rebuild": (400, 32, 32, 32)}


def folded(x, *others):
    return FoldedLinear.apply(x.flatten(0, -2), *others)[0].unflatten(0, x.shape[:-1])


FOLDS = [(400, 30, 20, 90), (40, 90, 20, 30), (40, 30, 20, 90), (6, 20, 10, 20)]  # into both, one and no factor


@pytest.mark.parametrize(("order", "sizes"), SIZES.items())
def test_every_order_gives_the_product_and_the_gradients_of_the_dense_weight(order, sizes):
    assert cheapest_order(*sizes) == order
    check(linear, sizes)


@pytest.mark.parametrize("sizes", FOLDS)
def test_sigma_may_be_folded_into_either_factor_or_none(sizes):
    check(folded, sizes)


def check(product, sizes):
    x, u, sigma, vh, bias = operands(*sizes)
    dense = x @ (u @ sigma @ vh).T + bias
    found = product(x, u, sigma, vh, bias)
    torch.testing.assert_close(found, dense)
    wanted = torch.autograd.grad(dense.square().sum(), (x, sigma, bias))
    for got, want in zip(torch.autograd.grad(found.square().sum(), (x, sigma, bias)), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("sizes", [(6, 5, 3, 4), (2, 5, 3, 4)])
def test_first_and_second_derivatives_agree_with_finite_differences(sizes):
    x, u, sigma, vh, bias = operands(*sizes)

    def product(x, sigma, bias):
        return folded(x, u, sigma, vh, bias)

    assert gradcheck(product, (x, sigma, bias))
    assert gradgradcheck(product, (x, sigma, bias))


@pytest.mark.parametrize("order", ["chain", "folded"])
def test_only_rows_times_rank_are_kept_for_backward(order):
    rows, _, rank, _ = SIZES[order]
    x, u, sigma, vh, _ = operands(*SIZES[order])
    assert kept_size(lambda: linear(x, u, sigma, vh), u, sigma, vh)[0] == rows * rank


@pytest.mark.parametrize("product", [linear, folded])
def test_an_input_that_needs_no_gradient_gets_none(product):
    x, u, sigma, vh, bias = operands(6, 5, 3, 4)
    x = x.detach()
    product(x, u, sigma, vh, bias).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(sigma.grad, (torch.ones(6, 4, dtype=x.dtype) @ u).T @ (x.reshape(6, 5) @ vh.T))


@pytest.fixture
def always_folded(monkeypatch):
    """Small layers take our own Function too."""
    monkeypatch.setattr("oialr_peft.linalg.cost._FUNCTION", -(10**12))


SHAPES = ((0, 5), (5,), (2, 0, 5), (7, 5), (2, 3, 1, 5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cost", [10**12, -(10**12)], ids=["chain", "folded"])
def test_batches_of_any_shape_pass_and_may_be_changed_in_place(shape, cost, monkeypatch):
    monkeypatch.setattr("oialr_peft.linalg.cost._FUNCTION", cost)
    _, u, sigma, vh, bias = operands(2, 5, 3, 4)
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    y = linear(x, u, sigma, vh, bias)
    assert y.shape == (*shape[:-1], 4)
    expected = torch.autograd.grad((linear(x, u, sigma, vh, bias) + 0.1).relu().sum(), x)[0]
    y += 0.1
    torch.relu_(y)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], expected)


def test_per_sample_gradients_by_torch_func(always_folded):
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
    dense.weight.data = factored.weights["default"].dense(factored.base_weight.dtype)
    return factored, dense, x.requires_grad_()


@pytest.mark.parametrize("name", CONVS)
def test_the_gradients_of_a_convolution_are_those_of_its_dense_kernel(name):
    factored, dense, x = factored_conv(name)
    sigma = factored.weights["default"].core
    found, expected = factored(x), dense(x)
    torch.testing.assert_close(found, expected)
    dx, dsigma = torch.autograd.grad(found.square().sum(), (x, sigma))
    wanted, kernel = torch.autograd.grad(expected.square().sum(), (x, dense.weight))
    u, _, vh = factored.weights["default"].factors
    torch.testing.assert_close(dx, wanted)
    torch.testing.assert_close(dsigma, u.mT @ kernel.reshape(factored.matrix_shape) @ vh.mT)


def test_second_derivatives_of_a_convolution():
    factored, _, x = factored_conv("conv2d groups")
    assert gradgradcheck(factored, (x,))


def test_a_convolution_keeps_its_inner_channels_only():
    factored, _, x = factored_conv("conv2d")
    kept, y = kept_size(lambda: factored(x), *factored.weights["default"].factors)
    assert kept == 2 * y[0, 0].numel() * len(x)  # two channels, where the layer has 6 in and 20 out


@pytest.mark.parametrize("make", [lambda: (nn.Linear(32, 24), torch.randn(64, 32)), CONVS["conv1d"]])
def test_gradients_under_autocast_are_close_and_in_the_dtypes_of_the_leaves(make, always_folded):
    layer, x = make()
    factored = adapt(layer, r=3).base_model.model.layer
    sigma = factored.weights["default"].core
    x.requires_grad_()
    exact = torch.autograd.grad(factored(x).square().mean(), (x, sigma))
    with torch.autocast("cpu", torch.bfloat16):
        y = factored(x)
    assert y.dtype == torch.bfloat16
    for got, want in zip(torch.autograd.grad(y.float().square().mean(), (x, sigma)), exact, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.05 * float(want.abs().max()))


KINDS = {"linear": lambda: (nn.Linear(16, 12), torch.randn(5, 16)), **CONVS}


@pytest.mark.parametrize("name", KINDS)
def test_what_takes_no_function_of_our_own_works(name, always_folded, tmp_path):
    layer, x = KINDS[name]()
    factored = adapt(layer, r=2).base_model.model.layer
    expected = factored(x)
    traced = torch.jit.trace(factored, x, check_trace=False)
    traced.save(tmp_path / "traced.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.pt")(x), expected)
    with torch.autograd.forward_ad.dual_level():
        dual = factored(torch.autograd.forward_ad.make_dual(x, x))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(factored, (x,), (x,))[1])


@pytest.mark.parametrize("name", KINDS)
def test_the_whole_jacobian_at_once_is_that_by_rows(name, always_folded):
    layer, x = (part.double() for part in KINDS[name]())
    factored = adapt(layer, r=1).base_model.model.layer
    sigma = factored.weights["default"].core
    y = factored(x.requires_grad_()).flatten()[:3]
    rows = [torch.autograd.grad(part, (x, sigma), retain_graph=True) for part in y]
    whole = torch.autograd.grad(y, (x, sigma), torch.eye(3, dtype=y.dtype), is_grads_batched=True)
    for number, found in enumerate(whole):
        torch.testing.assert_close(found, torch.stack([row[number] for row in rows]))


@pytest.mark.parametrize("name", ["linear", "conv2d groups"])
def test_a_frozen_sigma_keeps_nothing_of_the_batch(name, always_folded):
    layer, x = KINDS[name]()
    factored = adapt(layer, r=2).base_model.model.layer
    factored.weights["default"].core.requires_grad_(False)
    kept, _ = kept_size(lambda: factored(x.requires_grad_()), *factored.weights["default"].factors)
    assert kept == 0


@pytest.mark.parametrize("name", ["linear", "conv2d groups"])
def test_torch_compile_takes_our_functions_whole_for_batches_of_several_sizes(name, always_folded):
    layer, x = KINDS[name]()
    factored = adapt(layer, r=2).base_model.model.layer
    sigma = factored.weights["default"].core
    torch._dynamo.reset()
    compiled = torch.compile(factored, fullgraph=True, backend="aot_eager")
    for copies in (1, 2, 3):
        batch = torch.cat([x] * copies).requires_grad_()
        torch.testing.assert_close(compiled(batch), factored(batch))
        runs = [torch.autograd.grad(run(batch).square().sum(), (batch, sigma)) for run in (compiled, factored)]
        torch.testing.assert_close(*runs)


@pytest.mark.parametrize("rank", [1, 128, 512])
def test_an_exported_linear_layer_holds_for_every_batch(rank):
    factored = adapt(nn.Linear(512, 512), r=rank).base_model.model.layer
    sizes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(factored, (torch.randn(64, 512),), dynamic_shapes=sizes).module()
    for batch in (3, 4000):
        x = torch.randn(batch, 512)
        torch.testing.assert_close(exported(x), factored(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["conv2d", "conv2d groups"])
def test_an_exported_convolution_holds_for_every_batch(name):
    layer, x = CONVS[name]()
    factored = adapt(layer, r=2).base_model.model.layer
    example, sizes = torch.cat([x, x]), ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(factored, (example,), dynamic_shapes=sizes).module()
    batch = torch.cat([x] * 3)
    torch.testing.assert_close(exported(batch), factored(batch))


def test_autocast_keeps_one_cast_weight_for_several_calls_and_leaves_float64_alone():
    factored = adapt(nn.Linear(64, 64, bias=False), delay=3).base_model.model.layer
    x = torch.randn(2, 64, requires_grad=True)

    def twice():
        return factored(factored(x))

    with torch.autocast("cpu", torch.bfloat16):
        assert kept_size(twice)[0] < 2 * 64 * 64
        assert adapt(nn.Linear(6, 6).double(), r=2)(torch.randn(2, 6, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_autocast_keeps_no_cast_factors(name, always_folded):
    layer, x = KINDS[name]()
    factored = adapt(layer, r=2).base_model.model.layer
    with torch.autocast("cpu", torch.bfloat16):
        kept, y = kept_size(lambda: factored(x.requires_grad_()), *factored.weights["default"].factors)
    assert kept == 2 * y.numel() // layer.weight.shape[0] + 2 * 2  # the inner channels, and sigma
