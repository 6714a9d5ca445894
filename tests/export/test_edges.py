"""Compressed checkpoints of tied, freed and unusual layers, on disk, compressed twice, or with damaged files."""

import os

import pytest
import torch
import transformers
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from oialr_peft import OIALRConfig, save_compressed
from oialr_peft.export.modules import Factored
from tests.conftest import output, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tokens
from tests.export.test_compressed import edit_record
from tests.helpers import disturb


def compressed(model, folder, **config):
    """The model with a disturbed adapter and disturbed saved modules in eval, written to the folder."""
    peft_model = get_peft_model(model, OIALRConfig(**{"r": 0.25, **config})).eval()
    disturb(peft_model)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    save_compressed(peft_model, folder)
    return peft_model


def close(model, other, tolerance: float = 1e-5, **inputs) -> None:
    inputs = inputs or {"input_ids": tokens()}
    torch.testing.assert_close(output(model, inputs), output(other, inputs), rtol=tolerance, atol=tolerance)


def factored(model) -> int:
    return sum(isinstance(module, Factored) for module in model.modules())


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (tiny_gpt2, {"modules_to_save": ["lm_head"]}),
        (tiny_gpt2, {"modules_to_save": ["wte"]}),
        (lambda: tiny_llama(tie_word_embeddings=True), {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (lambda: tiny_llama(tie_word_embeddings=True), {"target_modules": ["lm_head", "q_proj"]}),
    ],
)
def test_tied_weights_that_were_trained_apart_stay_apart(make, config, tmp_path):
    model = compressed(make(), tmp_path, **config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    close(loaded, model)
    assert model.config.tie_word_embeddings
    assert not loaded.config.tie_word_embeddings
    loaded.save_pretrained(tmp_path / "again")
    close(AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval(), loaded, 0)


def test_an_encoder_decoder_cannot_have_them_apart_and_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"ties '.*' and '.*' on loading, but they were trained apart"):
        compressed(tiny_t5(), tmp_path / "out", modules_to_save=["lm_head"])
    assert list(tmp_path.iterdir()) == []


class Vision(transformers.PreTrainedModel):
    """torch's encoder with its fast path after a convolution of a class with arguments of its own."""

    class Patches(nn.Conv2d):
        def __init__(self, config):
            super().__init__(4, 16, 3, groups=2, stride=2)

    config_class = transformers.PretrainedConfig
    base_model_prefix = "body"

    def __init__(self, config):
        super().__init__(config)
        self.patches = self.Patches(config)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.post_init()

    def forward(self, x):
        return self.encoder(self.patches(x).flatten(2).mT)


@pytest.mark.parametrize("train_rest", [False, True])  # True frees the base weights, whose shape is then gone
def test_torchs_encoder_and_a_convolution_of_another_class(train_rest, tmp_path):
    targets = ["patches", "self_attn", "linear1", "linear2"]
    model = compressed(
        Vision(transformers.PretrainedConfig()), tmp_path, target_modules=targets, train_rest=train_rest
    )
    config = transformers.PretrainedConfig.from_pretrained(tmp_path)
    loaded = Vision.from_pretrained(tmp_path, config=config).eval()
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
        plain = loaded.dequantize()
        plain.save_pretrained(tmp_path / "plain")
        dense = Vision.from_pretrained(tmp_path / "plain").eval()
        assert not any(isinstance(module, Factored) for module in dense.modules())
        torch.testing.assert_close(dense(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_model_whose_initialisation_asks_a_layer_for_its_sizes(tmp_path):
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        vocab_size=12,
    )
    model = compressed(transformers.Wav2Vec2ForCTC(config), tmp_path)
    loaded = transformers.AutoModelForCTC.from_pretrained(tmp_path).eval()
    close(loaded, model, input_values=torch.randn(1, 800))


def test_dequantize_gives_back_the_kind_of_the_layer(tmp_path):
    model = compressed(
        tiny_gpt2(), tmp_path / "small", target_modules=["attn.c_proj"]
    )  # square: no error if transposed
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "small").dequantize()
    plain.save_pretrained(tmp_path / "plain")
    close(AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval(), model)


def test_a_compressed_model_is_trained_and_compressed_again(tmp_path):
    first = compressed(tiny_bert(), tmp_path / "one", r=0.5, modules_to_save=["classifier"])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    second = compressed(loaded, tmp_path / "two", r=2)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "two").eval()
    assert factored(again) > len(first.base_model.ranks())
    close(again, second)
    close(again.dequantize(), second)


def test_layers_on_disk(tmp_path):
    model = compressed(tiny_llama(), tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    load = AutoModelForCausalLM.from_pretrained
    close(load(tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "disk")).eval(), model)


def test_an_adapter_that_transformers_added(tmp_path):
    model = tiny_llama()
    model.add_adapter(OIALRConfig(r=0.25))
    disturb(model.eval())
    save_compressed(model, tmp_path)
    close(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), model)
    assert not (tmp_path / "adapter_config.json").exists()


@pytest.mark.skipif(transformers.__version__ < "5", reason="not run: transformers 4 opens files before it asks us")
@pytest.mark.parametrize("bytes_left", [0, 3000, -100])
def test_a_cut_off_file_is_named(bytes_left, tmp_path):
    compressed(tiny_bert(), tmp_path)
    file = tmp_path / "model.safetensors"
    os.truncate(file, bytes_left if bytes_left >= 0 else file.stat().st_size + bytes_left)
    with pytest.raises(ValueError, match=r"model.safetensors' is damaged or cut off"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_file_without_any_factor_is_refused(tmp_path):
    compressed(tiny_bert(), tmp_path)
    edit_record(tmp_path, files={})
    file = tmp_path / "model.safetensors"
    tensors = {f"module.{key}": tensor for key, tensor in load_file(file).items()}
    for wrong in (tensors, tiny_bert().state_dict()):
        save_file(wrong, file, {"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks the tensor 'bert\."):
            AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_the_folder_gets_the_users_mode_and_keeps_files_that_are_no_weights(tmp_path):
    folder = tmp_path / "model"
    before = os.umask(0o027)
    try:
        model = compressed(tiny_bert(), folder)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750
    for name in ("model_index.json", "model-notes.json", "adapter_notes.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    save_compressed(model, folder)
    left = {file.name for file in folder.iterdir()}
    assert {"model_index.json", "model-notes.json", "adapter_notes.json"} <= left
    assert "adapter_model.safetensors" not in left


def test_a_head_of_another_size_is_made_anew_where_that_is_asked_for(tmp_path):
    model = compressed(tiny_bert(), tmp_path / "model", r=2)
    load = AutoModelForSequenceClassification.from_pretrained
    other = load(tmp_path / "model", num_labels=7, ignore_mismatched_sizes=True).eval()
    assert other.classifier.weight.shape[0] == 7
    expected = model.base_model.model.bert(tokens()).last_hidden_state
    torch.testing.assert_close(other.bert(tokens()).last_hidden_state, expected)
    with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes|size mismatch"):
        load(tmp_path / "model", num_labels=7)


def with_bias_on_the_head(model):
    model.lm_head = nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    return "lm_head.bias"


def with_bias_on_a_projection(model):
    first = model.model.layers[0].self_attn
    first.q_proj = nn.Linear(first.q_proj.in_features, first.q_proj.out_features)
    return "layers.0.self_attn.q_proj.up.bias"


def with_a_parameter_of_its_own(model):
    model.scale = nn.Parameter(torch.ones(3))
    return "scale"


@pytest.mark.parametrize("add", [with_bias_on_the_head, with_bias_on_a_projection, with_a_parameter_of_its_own])
def test_what_the_class_has_no_place_for_is_refused_and_not_left_out(add, tmp_path):
    (tmp_path / "mine").touch()
    model = tiny_llama()
    name = add(model)
    with pytest.raises(ValueError, match=rf"{name}' .* was added to a LlamaForCausalLM"):
        compressed(model, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def with_another_head(model):
    model.score = nn.Linear(model.score.in_features, 7, bias=False)
    return r"'score.weight' has shape \[7, 16\], but .* makes it \[2, 16\].* `num_labels`"


def with_a_longer_table(model):
    model.model.embed_tokens = nn.Embedding(99, model.config.hidden_size)
    return r"'model.embed_tokens.weight' has shape \[99, 16\], .*`vocab_size`"


def with_fewer_layers(model):
    model.model.layers = model.model.layers[:1]
    return r"No values were found for 'model.layers.1\..* `num_hidden_layers`"


@pytest.mark.parametrize("change", [with_another_head, with_a_longer_table, with_fewer_layers])
def test_a_model_that_its_config_does_not_describe_names_the_field(change, tmp_path):
    model = transformers.LlamaForSequenceClassification(tiny_llama().config)
    words = change(model)
    with pytest.raises(ValueError, match=words):
        compressed(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("train_rest", [False, True])
def test_values_that_are_infinite_are_neither_written_nor_loaded(train_rest, tmp_path):
    model = compressed(tiny_llama(), tmp_path, train_rest=train_rest)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    edit_record(tmp_path, files=None)
    with pytest.raises(ValueError, match=r"'model.norm.weight' of the compressed model holds NaN or infinite"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.get_base_model().model.norm.weight[0] = float("inf")
    with pytest.raises(ValueError, match=r"norm.weight' holds NaN or infinite values"):
        save_compressed(model, tmp_path)
