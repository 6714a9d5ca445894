"""Models that read attributes of the layers they call, or use their weights without calling them."""

import copy
import pickle

import pytest
import torch
import transformers
from peft import get_peft_model

from oialr_peft import OIALRConfig


def tiny_whisper():
    config = transformers.WhisperConfig(
        vocab_size=48, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=10,
        max_target_positions=12, decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def tiny_mobilenet():
    config = transformers.MobileNetV1Config(depth_multiplier=0.25, min_depth=8, image_size=32, tf_padding=True)
    return transformers.MobileNetV1ForImageClassification(config)


def tiny_falcon():
    config = transformers.FalconConfig(vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    return transformers.FalconForCausalLM(config)


READERS = {
    "Whisper": (tiny_whisper, lambda: {"input_features": torch.randn(1, 8, 20), "labels": torch.tensor([[3, 4, 5]])}),
    "MobileNet": (tiny_mobilenet, lambda: {"pixel_values": torch.randn(1, 3, 32, 32)}),
    "Falcon": (tiny_falcon, lambda: {"input_ids": torch.tensor([[3, 4, 5]])}),
}


@pytest.mark.parametrize(("make", "inputs"), READERS.values(), ids=READERS)
def test_models_that_read_attributes_of_their_layers_run_with_the_defaults(make, inputs):
    model, batch = make().eval(), inputs()
    with torch.no_grad():
        expected = model(**batch).logits
        found = get_peft_model(model, OIALRConfig()).eval()(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


class Doubled(torch.nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_a_subclass_of_linear_with_a_forward_of_its_own_is_named():
    with pytest.raises(ValueError, match=r"0 \(is a tests.*Doubled; supported are"):
        get_peft_model(torch.nn.Sequential(Doubled(16, 16)), OIALRConfig())


class Reader(torch.nn.Module):
    """Computes with the weight of a layer that it does not call, and looks at that of one which it calls."""

    def __init__(self):
        super().__init__()
        self.read, self.called = torch.nn.Linear(12, 16, bias=False), torch.nn.Linear(16, 16)
        torch.nn.init.normal_(self.read.weight)

    def forward(self, x):
        return self.called((x @ self.read.weight.T).to(self.called.weight.dtype))


@pytest.mark.parametrize("settings", [{}, {"keep_base_weights": False}, {"bases": "longer"}, {"delay": 9}])
def test_a_weight_that_is_read_is_the_adapters_and_trains(settings):
    torch.manual_seed(0)
    base, x = Reader(), torch.randn(3, 12)
    expected = base(x)
    model = get_peft_model(base, OIALRConfig(**settings))
    read, called = base.read, base.called
    assert (read.is_read, called.is_read) == (True, False)
    assert called.weight is called.base_layer.weight
    torch.testing.assert_close(model(x), expected)
    model(x).square().sum().backward()
    (weight,) = read.weights.values()
    assert weight.core.grad.abs().sum() > 0
    weight.core.data.mul_(2)
    torch.testing.assert_close(read(x), x @ read.weight.T)
    torch.testing.assert_close(read.weight, weight.dense(torch.float32))
    if "delay" not in settings and settings != {"keep_base_weights": False}:
        with model.disable_adapter():
            assert read.weight is read.base_layer.weight


def wrapped(**attributes):
    """The layer around a convolution with these attributes."""
    base = torch.nn.Conv2d(6, 8, 3, stride=2, padding=1)
    for name, value in attributes.items():
        setattr(base, name, value)
    return get_peft_model(torch.nn.Sequential(base), OIALRConfig(target_modules=["0"])).base_model.model[0]


def test_only_what_a_layer_lacks_comes_from_its_base():
    layer = wrapped(_hf_hook=1, extra=2)
    assert (layer.stride, layer.padding, layer.kernel_size, layer.extra) == ((2, 2), (1, 1), (3, 3), 2)
    assert layer.weight is layer.base_layer.weight
    assert not hasattr(layer, "_hf_hook")  # Accelerate would take the base layer's hook off this one
    with pytest.raises(AttributeError, match="no attribute 'strid'"):
        _ = layer.strid
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(wrapped()))):
        assert twin.stride == (2, 2)


def tiny_deberta():
    """The head of words is handed the table of the body."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.DebertaV2Config(vocab_size=64, max_position_embeddings=32, legacy=False, **sizes)
    return transformers.DebertaV2ForMaskedLM(config).eval()


def test_a_table_that_another_module_reads_is_left_alone_or_refused_by_name():
    selection = get_peft_model(tiny_deberta(), OIALRConfig(embeddings=True)).base_model.selection
    reason = selection.skipped["deberta.embeddings.word_embeddings"]
    assert "DebertaV2ForMaskedLM reads its weight" in reason or "is tied" in reason  # as transformers 4 has it
    assert "deberta.embeddings.position_embeddings" in selection.chosen
    with pytest.raises(ValueError, match="word_embeddings' is read directly by DebertaV2ForMaskedLM"):
        get_peft_model(tiny_deberta(), OIALRConfig(target_modules=["word_embeddings"]))


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("settings", [{}, {"keep_base_weights": False}, {"residual": True, "r": 4}])
def test_rwkv_which_divides_its_weights_for_inference_computes_with_the_adapters(evaluated, settings):
    torch.manual_seed(0)
    config = transformers.RwkvConfig(
        vocab_size=64, hidden_size=32, attention_hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        context_length=16, rescale_every=2,
    )  # fmt: skip
    base, tokens = transformers.RwkvForCausalLM(config), torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        expected = copy.deepcopy(base).eval()(tokens).logits
        if evaluated:
            base.eval()(tokens)
        model = get_peft_model(base, OIALRConfig(**settings))
        for turned in (model.train, model.eval, lambda: model.merge_and_unload().eval()):  # each before the next
            torch.testing.assert_close(turned()(tokens).logits, expected, rtol=2e-3, atol=2e-3)
