"""Convolutions and attention: the same function as the base layer, factored, cut, merged, saved and loaded."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from oialr_peft import OIALRConfig, OIALRUpdater, rank_report
from tests.helpers import Wrapped, adapt, disturb, train


CONVS = {
    "conv1d": lambda: (nn.Conv1d(12, 16, 3, stride=2, padding=1), torch.randn(2, 12, 11)),
    "conv1d circular": lambda: (nn.Conv1d(12, 16, 3, padding=1, padding_mode="circular"), torch.randn(2, 12, 11)),
    "conv2d": lambda: (nn.Conv2d(6, 20, (3, 2), stride=(2, 1), padding=(1, 2)), torch.randn(2, 6, 9, 7)),
    "conv2d dilated": lambda: (nn.Conv2d(6, 20, 3, dilation=2, padding="same", bias=False), torch.randn(2, 6, 9, 7)),
    "conv2d groups": lambda: (nn.Conv2d(12, 32, 3, groups=4, stride=2), torch.randn(2, 12, 9, 7)),
    "conv2d 1x1": lambda: (nn.Conv2d(16, 16, 1), torch.randn(2, 16, 5, 5)),
    "conv2d unbatched": lambda: (nn.Conv2d(6, 20, 3), torch.randn(6, 9, 7)),
}


CUTS = {"update_interval": 2, "layer_step": 1.0, "sigma_cutoff": 0.5}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("rank", [None, 0.5, 1])
def test_a_convolution_gives_what_its_composed_kernel_gives(name, rank):
    layer, x = CONVS[name]()
    base, expected = copy.deepcopy(layer), layer(x)
    model = adapt(layer, r=rank)
    factored = model.base_model.model.layer
    if rank is None:
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    disturb(model)
    base.weight.data = factored.weights["default"].dense(factored.base_weight.dtype)
    torch.testing.assert_close(model(x), base(x), rtol=1e-5, atol=1e-5)
    merged = model.merge_and_unload().layer
    assert type(merged) is type(layer)
    torch.testing.assert_close(merged(x), base(x), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 3000])
def test_every_order_of_contraction_gives_the_same_convolution(rows):
    layer = nn.Conv1d(8, 24, 3, groups=2)
    for rank in (1, 6, 12):
        x = torch.randn(1, 8, rows + 2, dtype=torch.float64)
        model = adapt(copy.deepcopy(layer).double(), r=rank)
        expected = copy.deepcopy(layer).double()
        expected.weight.data = model.base_model.model.layer.weights["default"].dense(torch.float64)
        torch.testing.assert_close(model(x), expected(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_trains_is_cut_saved_and_loaded(name, delay, dtype, tmp_path, monkeypatch):
    layer, x = (part.to(dtype) for part in CONVS[name]())
    base = copy.deepcopy(layer)
    model = adapt(layer, delay=delay, keep_base_weights=True, **CUTS)
    full = model.base_model.ranks()["layer"]
    updater = train(model, (x,))
    sigma = model.base_model.model.layer.weights["default"].core
    state = updater.optimizer.state[sigma]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == sigma.shape
    assert 1 <= model.base_model.ranks()["layer"] < full
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: pytest.fail("loading ran an SVD"))
    loaded = PeftModel.from_pretrained(Wrapped(base), tmp_path)
    assert loaded(x).dtype == dtype
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 16), lambda: Conv1D(16, 12)], ids=["linear", "conv1d of gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_linear_layer_trains_is_cut_saved_and_loaded(make, dtype, low_cpu_mem_usage, tmp_path):
    layer, x = make().to(dtype), torch.randn(5, 12, dtype=dtype)
    base = copy.deepcopy(layer)
    model = adapt(layer, **CUTS)
    train(model, (x,))
    assert model.base_model.ranks()["layer"] < 12
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Wrapped(base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0, atol=0)


def test_a_rotation_of_groups_keeps_the_kernel_and_moves_their_moments_together():
    layer, x = CONVS["conv2d groups"]()
    model = adapt(layer.double(), update_interval=4, sigma_cutoff=0.0)
    x = x.double()
    train(model, (x,), steps=3)
    before = model.base_model.model.layer.weights["default"].dense(torch.float64)
    factored = model.base_model.model.layer
    assert factored.matrix_shape == (4, 8, 27)
    optimizer = torch.optim.AdamW([factored.weights["default"].core], lr=0.0)
    updater = OIALRUpdater(model, optimizer)
    updater.steps = 3
    model(x).sum().backward()
    optimizer.step()
    first = optimizer.state[factored.weights["default"].core]["exp_avg"].clone()
    u, vh = factored.oialr_u["default"].clone(), factored.oialr_vh["default"].clone()
    assert updater.step() is not None
    torch.testing.assert_close(factored.weights["default"].dense(torch.float64), before, rtol=1e-12, atol=1e-12)
    moved = optimizer.state[factored.weights["default"].core]["exp_avg"]
    full = factored.oialr_u["default"] @ moved @ factored.oialr_vh["default"]
    torch.testing.assert_close(full, u @ first @ vh, rtol=1e-10, atol=1e-12)


def attention(**kwargs) -> nn.MultiheadAttention:
    layer = nn.MultiheadAttention(16, 4, **kwargs)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.eval()


ATTENTION = {
    "packed": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "separate": {"kdim": 12, "vdim": 20},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
}


def attention_inputs(layer: nn.MultiheadAttention, batch: int | None = 3) -> tuple[torch.Tensor, ...]:
    sizes = ((5, layer.embed_dim), (7, layer.kdim), (7, layer.vdim))
    if batch is None:
        return tuple(torch.randn(length, width) for length, width in sizes)
    return tuple(
        torch.randn(batch, length, width) if layer.batch_first else torch.randn(length, batch, width)
        for length, width in sizes
    )


MASKS = {
    "none": {},
    "no weights": {"need_weights": False},
    "weights by head": {"average_attn_weights": False},
    "boolean": {"attn_mask": torch.ones(5, 7).triu(2).bool()},
    "causal": {"attn_mask": torch.ones(5, 7).triu(1).bool(), "is_causal": True, "need_weights": False},
    "additive by head": {"attn_mask": torch.randn(12, 5, 7)},
    "padding": {"key_padding_mask": torch.tensor([[False] * 4 + [True] * 3] * 3)},
    "both": {
        "attn_mask": torch.ones(5, 7).triu(3).bool(),
        "key_padding_mask": torch.tensor([[False] * 5 + [True] * 2] * 3),
        "need_weights": False,
    },
}


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("mask", MASKS)
def test_attention_gives_what_torch_gives(kind, mask):
    layer = attention(**ATTENTION[kind])
    inputs = attention_inputs(layer)
    masks = dict(MASKS[mask])
    if kind == "extra keys" and mask == "causal":
        masks.pop("is_causal")  # torch's hint would hide the extra keys, which the mask itself does not
    expected, weights = layer(*inputs, **masks)
    model = adapt(layer).eval()
    assert set(model.base_model.ranks()) == {f"layer.{p}_proj" for p in ("q", "k", "v", "out")}
    y, own_weights = model(*inputs, **MASKS[mask])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert (own_weights is None) == (weights is None)
    if weights is not None:
        torch.testing.assert_close(own_weights, weights, rtol=1e-4, atol=1e-5)


def test_attention_without_a_batch_and_with_a_causal_hint_alone():
    layer = attention()
    inputs = attention_inputs(layer, batch=None)
    expected = layer(*inputs)
    model = adapt(layer).eval()
    for own, torchs in zip(model(*inputs), expected, strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="needs `attn_mask` too"):
        model(*inputs, is_causal=True)


def test_attention_drops_out_in_training_only():
    layer = attention(dropout=0.5)
    model = adapt(layer)
    inputs = attention_inputs(layer)
    for need_weights in (True, False):
        model.train()
        assert not torch.equal(
            model(*inputs, need_weights=need_weights)[0], model(*inputs, need_weights=need_weights)[0]
        )
        model.eval()
        torch.testing.assert_close(
            model(*inputs, need_weights=need_weights)[0], model(*inputs, need_weights=need_weights)[0]
        )


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_comes_back_whole_when_unloaded(kind):
    layer = attention(**ATTENTION[kind])
    inputs, state = attention_inputs(layer), copy.deepcopy(layer.state_dict())
    model = adapt(layer).eval()
    disturb(model)
    adapted = model(*inputs)[0]
    merged = copy.deepcopy(model).merge_and_unload().layer
    assert type(merged) is nn.MultiheadAttention
    torch.testing.assert_close(merged(*inputs)[0], adapted, rtol=1e-4, atol=1e-5)
    back = model.unload().layer
    assert type(back) is nn.MultiheadAttention
    assert back.state_dict().keys() == state.keys()
    for key, value in back.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("kind", ["packed", "separate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_trains_is_cut_saved_and_loaded(kind, dtype, low_cpu_mem_usage, tmp_path):
    layer = attention(**ATTENTION[kind]).to(dtype)
    base, inputs = copy.deepcopy(layer), tuple(x.to(dtype) for x in attention_inputs(layer))
    model = adapt(layer, delay=2, train_rest=True, **CUTS)
    train(model, inputs)
    assert all(rank < 12 for rank in model.base_model.ranks().values())
    assert all(child.base_weight.numel() == 0 for child in model.base_model.model.layer.children())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Wrapped(base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert loaded.base_model.ranks() == model.base_model.ranks()
    torch.testing.assert_close(loaded.eval()(*inputs)[0], model.eval()(*inputs)[0], rtol=0, atol=0)


def test_a_second_adapter_and_ranks_by_pattern():
    model = adapt(attention(), r=8, rank_pattern={"layer": 4, "layer.v_proj": 6})
    assert model.base_model.ranks() == {f"layer.{p}_proj": r for p, r in (("q", 4), ("k", 4), ("v", 6), ("out", 4))}
    model.add_adapter("other", OIALRConfig(target_modules=["layer"], r=5))
    model.set_adapter("other")
    assert set(model.base_model.ranks().values()) == {5}
    model.delete_adapter("other")
    assert set(model.base_model.ranks().values()) == {4, 6}
    assert [layer.rank for layer in rank_report(model).layers] == [4, 4, 6, 4]


def test_the_output_projection_alone_is_refused_and_the_attention_named():
    model = Wrapped(attention())
    with pytest.raises(ValueError, match="name the attention module itself"):
        get_peft_model(model, OIALRConfig(target_modules=["out_proj"]))
    both = get_peft_model(model, OIALRConfig(target_modules=["layer", "out_proj"]))
    assert len(both.base_model.ranks()) == 4


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_encoder_calls_the_factored_layers_also_in_eval(norm_first):
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first, dropout=0.0)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=not norm_first).eval()
    x, padding = torch.randn(3, 6, 16), torch.tensor([[False] * 4 + [True] * 2] * 3)
    expected = encoder(x), encoder(x, src_key_padding_mask=padding)
    model = get_peft_model(Wrapped(encoder), OIALRConfig()).eval()
    assert len(model.base_model.ranks()) == 2 * 6
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected[0], rtol=1e-4, atol=1e-5)
        masked = model(x, src_key_padding_mask=padding)
        torch.testing.assert_close(masked[:, :4], expected[1][:, :4], rtol=1e-4, atol=1e-5)
        disturb(model)
        assert not torch.allclose(model(x), expected[0], atol=1e-2)
