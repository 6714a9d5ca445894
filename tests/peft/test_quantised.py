"""Residual adapters on quantised layers: bitsandbytes' and torchao's where they are installed, a likeness always."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn

from oialr_peft import OIALRConfig, rank_report
from tests.conftest import MLP
from tests.helpers import train


X = torch.linspace(-1, 1, 36).reshape(3, 12)


class Likeness(torch.Tensor):
    """An int8 weight that is asked for its numbers as torchao's are."""

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).float() / 100

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            args = (args[0], args[1].dequantize(), *args[2:])
            return F.linear(*args, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs)


Likeness.__module__ = "torchao.likeness"  # by which PEFT knows that it can be asked


def likeness(layer: nn.Linear) -> nn.Linear:
    numbers = (layer.weight.detach() * 100).round().to(torch.int8)
    layer.weight = nn.Parameter(numbers.as_subclass(Likeness), requires_grad=False)
    return layer


def torchao_int8(layer: nn.Linear) -> nn.Linear:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    return layer


def bitsandbytes(layer: nn.Linear, bits: int) -> nn.Linear:
    bnb = pytest.importorskip("bitsandbytes")
    sizes, settings = (layer.in_features, layer.out_features, layer.bias is not None), {"requires_grad": False}
    if bits == 4:
        new = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
        new.weight = bnb.nn.Params4bit(layer.weight.data, quant_type="nf4", **settings)
    else:
        new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
        new.weight = bnb.nn.Int8Params(layer.weight.data, has_fp16_weights=False, **settings)
    new.bias = layer.bias
    return new.to("cpu")


WAYS = {
    "likeness": likeness,
    "torchao int8": torchao_int8,
    "bitsandbytes nf4": lambda layer: bitsandbytes(layer, 4),
    "bitsandbytes int8": lambda layer: bitsandbytes(layer, 8),
}


@pytest.fixture(params=WAYS)
def quantised(request) -> MLP:
    torch.manual_seed(11)
    model = MLP(width=64).eval()
    for name in ("first", "middle", "last"):
        setattr(model, name, WAYS[request.param](getattr(model, name)))
    return model


@torch.no_grad()
def run(model: nn.Module) -> torch.Tensor:
    return model.eval()(X)


@pytest.mark.parametrize("save_bases", [True, False])
def test_a_quantised_base_is_adapted_trained_saved_and_given_back(quantised, save_bases, tmp_path):
    base = run(quantised)
    model = get_peft_model(quantised, OIALRConfig(residual=True, r=4, save_bases=save_bases))
    assert torch.equal(run(model), base)
    train(model, (X,), steps=5)
    trained = run(model)
    assert not torch.allclose(trained, base, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(run(model), base)
    model.save_pretrained(tmp_path)
    changes = {name: layer.get_delta_weight("default") for name, layer in _layers(model).items()}
    loaded = PeftModel.from_pretrained(model.unload(), tmp_path)
    assert torch.equal(run(loaded), trained)
    for name, layer in _layers(loaded).items():
        assert torch.equal(layer.get_delta_weight("default"), changes[name])
    with pytest.raises(ValueError, match="is quantised and cannot take the change of adapter 'default'"):
        loaded.merge_adapter()
    assert torch.equal(run(loaded), trained)


def test_the_report_counts_the_bytes_of_packed_weights():
    torch.manual_seed(11)
    layer = bitsandbytes(nn.Linear(64, 64), 4)
    model = get_peft_model(nn.Sequential(layer), OIALRConfig(residual=True, r=4, target_modules=["0"]))
    (report,) = rank_report(model).layers
    assert report.shape == (64, 64)
    assert report.bytes == 64 * 64 // 2 + 2 * 2 * 4 * 64 + 4 * 4 * 4


def test_without_residual_mode_the_words_name_it():
    torch.manual_seed(11)
    model = nn.Sequential(likeness(nn.Linear(12, 12)))
    for targets in (None, ["0"]):
        with pytest.raises(ValueError, match=r"holds quantised weights .*`OIALRConfig\(residual=True\)`; set it"):
            get_peft_model(model, OIALRConfig(target_modules=targets))
    model[0].weight = nn.Parameter(torch.ones(12, 12, dtype=torch.int8), requires_grad=False)  # nobody can read it
    with pytest.raises(ValueError, match=r"holds quantised weights .*not supported yet; load the model in float32"):
        get_peft_model(model, OIALRConfig(residual=True, target_modules=["0"]))


def _layers(model: PeftModel) -> dict[str, nn.Module]:
    return {name: model.base_model.model.get_submodule(name) for name in ("first", "middle", "last")}
