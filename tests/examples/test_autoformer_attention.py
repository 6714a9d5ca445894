"""The mended attention against a plain reading of thuml's algorithm, and against the faults it mends."""

import math

import pytest
import torch
from attention import MendedAutoformerAttention, auto_correlation, mend_attention
from model import build_config, build_model
from torch import Tensor, nn


# float64 against float64: differences can only come from the order of summation
TOLERANCE = {"atol": 1e-10, "rtol": 1e-10}
LENGTHS = [(24, 24), (36, 24), (24, 36)]  # L == S, L > S, L < S


def reference(query: Tensor, key: Tensor, value: Tensor, heads: int, factor: int, training: bool) -> Tensor:
    """thuml's AutoCorrelation, time delay by time delay and head by head, without a Fourier transform."""
    batch, length, d_model = query.shape

    def split(x: Tensor) -> Tensor:
        filled = torch.cat([x, x.new_zeros(batch, max(0, length - x.shape[1]), d_model)], dim=1)[:, :length]
        return filled.view(batch, length, heads, d_model // heads)

    query, key, value = split(query), split(key), split(value)
    correlation = torch.stack([(query.roll(-tau, 1) * key).sum(1) for tau in range(length)], dim=1).mean((2, 3))
    count = int(factor * math.log(length))
    chosen = correlation.mean(0, keepdim=True).expand_as(correlation) if training else correlation
    delays = chosen.topk(count, dim=1).indices
    weights = correlation.gather(1, delays).softmax(dim=1)
    samples = [sum(weights[b, i] * value[b].roll(-int(delays[b, i]), 0) for i in range(count)) for b in range(batch)]
    return torch.stack(samples).reshape(batch, length, d_model)


def states(length: int, source: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, length, 16), (3, source, 16), (3, source, 16)]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("length", "source"), LENGTHS)
def test_values_and_gradients_equal_the_reference(length: int, source: int, training: bool) -> None:
    inputs = states(length, source)
    got = auto_correlation(*inputs, factor=2, training=training)
    expected = reference(*inputs, heads=4, factor=2, training=training)
    torch.testing.assert_close(got, expected, **TOLERANCE)
    direction = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def attention_module() -> MendedAutoformerAttention:
    torch.manual_seed(0)
    model = build_model(build_config(d_model=16, heads=4, ffn=16), mend=True)
    module = model.model.decoder.layers[0].encoder_attn.eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def test_a_sample_does_not_depend_on_its_batch_mates_in_evaluation() -> None:
    module, target, source = attention_module(), torch.randn(4, 36, 16), torch.randn(4, 24, 16)
    together = module(target, key_value_states=source)[0]
    alone = module(target[1:2], key_value_states=source[1:2])[0]
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_the_last_queries_have_an_effect() -> None:
    module, target, source = attention_module(), torch.randn(4, 36, 16), torch.randn(4, 24, 16)
    changed = target.clone()
    changed[:, -1] += 5.0
    outputs = [module(x, key_value_states=source)[0] for x in (target, changed)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_transformers_attention_has_the_faults() -> None:
    """Fails when transformers mends its attention: then this file and `mend_attention` can go."""
    module, target, source = attention_module(), torch.randn(4, 36, 16), torch.randn(4, 24, 16)
    module.__class__ = MendedAutoformerAttention.__base__
    together = module(target, key_value_states=source)[0]
    assert (together[1:2] - module(target[1:2], key_value_states=source[1:2])[0]).abs().max() > 1e-3


def test_mending_turns_all_modules_and_refuses_other_models() -> None:
    assert mend_attention(build_model(build_config(d_model=16, heads=4, ffn=16), mend=False)) == 4
    with pytest.raises(ValueError, match="holds none"):
        mend_attention(nn.Linear(2, 2))


def test_a_mask_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="no query-by-key matrix"):
        attention_module()(torch.randn(2, 24, 16), attention_mask=torch.ones(2, 1, 24, 24))
