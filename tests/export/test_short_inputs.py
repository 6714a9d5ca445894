"""Short inputs on a CPU take another way through a compressed layer, and nobody notices."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from oialr_peft.export import modules
from oialr_peft.export.modules import Factored


@pytest.fixture
def ways(monkeypatch):
    """The row counts that took the other way."""
    taken = []
    turned = modules._turned

    def note(x, *weights):
        taken.append(x.numel() // x.shape[-1])
        return turned(x, *weights)

    monkeypatch.setattr(modules, "_turned", note)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    return taken


def factored(bias=True):
    return Factored(nn.Linear(20, 6, bias=False), nn.Linear(6, 30, bias=bias))


@pytest.mark.parametrize("bias", [True, False])
def test_values_gradients_and_layout_are_those_of_the_two_layers(bias, ways):
    layer = factored(bias)
    for shape in ((15, 20), (16, 20), (2, 3, 4, 20), (48, 20), (1, 48, 20), (49, 20), (20,), (0, 20)):
        x = torch.randn(shape, requires_grad=True)
        y, expected = layer(x), layer.up(layer.down(x))
        assert y.shape == expected.shape
        assert y.is_contiguous()
        torch.testing.assert_close(y, expected)
        leaves = (x, *layer.parameters())
        got = torch.autograd.grad(y.square().sum(), leaves)
        torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), leaves))
    assert ways == [16, 24, 48, 48]


def test_what_was_put_on_a_layer_is_not_passed_over(ways):
    x, calls = torch.randn(16, 20), []
    for hook in ("register_forward_hook", "register_forward_pre_hook"):
        layer = factored()
        getattr(layer.down, hook)(lambda *_: calls.append(1))
        layer(x)
    layer = factored()
    layer.up.register_full_backward_hook(lambda *_: calls.append(1))
    layer(x.requires_grad_()).sum().backward()
    layer = factored()
    plain = layer.down.forward
    layer.down.forward = lambda x: calls.append(1) or plain(x)  # as Accelerate does
    layer(x)
    assert len(calls) == 4
    adapted = get_peft_model(nn.Sequential(factored()), LoraConfig(target_modules=["down"], init_lora_weights=False))
    with adapted.disable_adapter():
        without = adapted(x)
    assert not torch.allclose(adapted(x), without)
    assert ways == []


def test_other_dtypes_and_recorded_graphs_go_by_the_layers(ways, monkeypatch):
    x = torch.randn(16, 20)
    factored().double()(x.double())
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: pytest.fail("dynamo cannot always trace this"))
    compiled = torch.compile(factored(), fullgraph=True, backend="aot_eager", dynamic=True)
    sizes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(factored(), (x,), dynamic_shapes=sizes).module()
    traced: Any = torch.jit.trace(factored(), x, check_trace=False)
    for run in (compiled, exported, traced):
        assert run(torch.randn(60, 20)).shape == (60, 30)
        assert run(x).shape == (16, 30)
    assert ways == []


def test_weights_that_compute_by_themselves_go_by_the_layers(ways):
    class Quantised(torch.Tensor):
        """As torchao's, which know F.linear and not all of matrix products."""

    layer = factored()
    layer.down.weight = nn.Parameter(layer.down.weight.detach().as_subclass(Quantised))
    layer(torch.randn(16, 20))
    assert ways == []
