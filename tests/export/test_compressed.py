"""Stand-alone compressed checkpoints: small, exact, loaded without base, dense weight or SVD."""

import json
import math
import subprocess
import sys

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from oialr_peft import OIALRConfig, save_compressed
from oialr_peft.export.guard import WORDS
from oialr_peft.export.modules import Factored
from oialr_peft.layer import adapted_weights
from tests.conftest import MLP, MODELS, output, tiny_bert, tiny_gpt2, tiny_llama, tokens
from tests.helpers import disturb


def compressed(model, folder, **config):
    """The model with a disturbed adapter in eval, saved to the folder."""
    peft_model = get_peft_model(model, OIALRConfig(**{"r": 0.25, **config})).eval()
    disturb(peft_model)
    save_compressed(peft_model, folder)
    return peft_model


def logits(model) -> torch.Tensor:
    return output(model, {"input_ids": tokens()})


@pytest.fixture
def no_svd(monkeypatch):
    def arm():
        for module, name in ((torch.linalg, "svd"), (torch.linalg, "qr"), (torch, "svd_lowrank")):
            monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("loading ran a decomposition"))

    return arm


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("train_rest", [False, True])
def test_it_loads_without_base_or_svd_and_equals_the_adapter(name, train_rest, tmp_path, no_svd):
    make, inputs = MODELS[name]
    model = compressed(make(), tmp_path, train_rest=train_rest)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    no_svd()
    loaded = type(model.get_base_model()).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(output(loaded, inputs()), output(model, inputs()), rtol=1e-5, atol=1e-5)
    assert sum(isinstance(module, Factored) for module in loaded.modules()) == len(model.base_model.ranks())
    assert not (tmp_path / "adapter_config.json").exists()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    written = json.loads((again / "config.json").read_text())
    assert written["transformers_weights"] == written["torch_dtype"] == WORDS
    twice = type(model.get_base_model()).from_pretrained(again).eval()
    torch.testing.assert_close(output(twice, inputs()), output(loaded, inputs()), rtol=0, atol=0)


def test_the_file_holds_the_factors_and_the_rest_and_nothing_else(tmp_path):
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    model = compressed(transformers.BertForSequenceClassification(config), tmp_path)
    layers = dict(model.base_model.model.named_modules())
    saved = load_file(tmp_path / "model.safetensors")
    factors = sum(
        rank * sum(layers[name].weight_shape) for name, rank in model.base_model.ranks().items()
    )  # sigma is folded into one of the two
    rest = sum(tensor.numel() for key, tensor in saved.items() if not key.endswith(("down.weight", "up.weight")))
    assert (tmp_path / "model.safetensors").stat().st_size <= 1.01 * 4 * (factors + rest)
    dense = sum(math.prod(layers[name].weight_shape) for name in model.base_model.ranks())
    assert factors < 0.55 * dense


def test_layers_that_would_not_be_smaller_are_dense(tmp_path):
    model = compressed(tiny_llama(), tmp_path, r=None, rank_pattern={"up_proj": 3})
    assert set(json.loads((tmp_path / "config.json").read_text())["quantization_config"]["layers"]) == {
        f"model.layers.{i}.mlp.up_proj" for i in (0, 1)
    }
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_an_adapter_that_is_still_dense_and_a_second_one_that_is_not_active(tmp_path):
    model = compressed(tiny_llama(), tmp_path / "dense", delay=5, r=None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-6, atol=1e-6)
    model = get_peft_model(tiny_llama(), OIALRConfig(r=2, target_modules=["q_proj"])).eval()
    model.add_adapter("other", OIALRConfig(r=3, target_modules=["v_proj", "q_proj"]))
    model.set_adapter("other")
    save_compressed(model, tmp_path / "two")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "two").eval()
    assert {m.down.out_features for m in loaded.modules() if isinstance(m, Factored)} == {3}
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_folded_in_float32_and_cast_once(tmp_path):
    model = compressed(tiny_llama().to(torch.bfloat16), tmp_path)
    name, layer = "model.layers.0.mlp.up_proj", model.base_model.model.model.layers[0].mlp.up_proj
    saved = load_file(tmp_path / "model.safetensors")
    u, sigma, vh = layer.weights["default"].factors
    assert saved[f"{name}.down.weight"].dtype == torch.bfloat16
    folded = (u @ sigma, vh) if u.numel() <= vh.numel() else (u, sigma @ vh)
    assert torch.equal(saved[f"{name}.up.weight"], folded[0].to(torch.bfloat16))
    assert torch.equal(saved[f"{name}.down.weight"], folded[1].to(torch.bfloat16))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


class Mixed(transformers.PreTrainedModel):
    """Convolutions with groups and attention, in a transformers model."""

    config_class = transformers.PretrainedConfig
    base_model_prefix = "body"

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(4, 32, 3, groups=2, stride=2)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.separate = nn.MultiheadAttention(32, 4, batch_first=True, kdim=24, vdim=16, bias=False)
        self.conv1d = nn.Conv1d(32, 32, 3, padding=1, padding_mode="circular")
        self.post_init()

    def forward(self, x):
        y = self.conv(x).flatten(2).mT
        y = self.attention(y, y, y)[0]
        y = self.separate(y, y[..., :24], y[..., :16])[0]
        return self.conv1d(y.mT)


def test_convolutions_and_attention(tmp_path, no_svd):
    targets = ["conv", "conv1d", "attention", "separate"]
    model = compressed(Mixed(transformers.PretrainedConfig()), tmp_path, target_modules=targets)
    x = torch.randn(2, 4, 9, 9)
    no_svd()
    loaded = Mixed.from_pretrained(tmp_path, config=transformers.PretrainedConfig.from_pretrained(tmp_path)).eval()
    assert sum(isinstance(module, Factored) for module in loaded.modules()) == 10
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    plain = loaded.dequantize()
    assert not any(isinstance(module, Factored) for module in plain.modules())
    torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)


def test_generate_pipeline_device_map_shards_and_export(tmp_path):
    model = compressed(tiny_llama(), tmp_path / "llama")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", device_map="auto").eval()
    prompt = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(**prompt, **settings), model.generate(**prompt, **settings))
    loaded.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "shards").eval()
    held = loaded.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in again.state_dict().items())
    torch.testing.assert_close(logits(again), logits(loaded))  # kernels depend on where in memory the weights lie
    exported = torch.export.export(again, (), {"input_ids": tokens(), "use_cache": False}).module()
    torch.testing.assert_close(exported(input_ids=tokens(), use_cache=False).logits, logits(again))
    compressed(tiny_bert(), tmp_path / "bert", modules_to_save=["classifier"])
    from tests.neighbours.test_libraries import tokenizer

    classify = transformers.pipeline("text-classification", str(tmp_path / "bert"), tokenizer=tokenizer())
    assert {"label", "score"} <= classify("the film is good")[0].keys()


def test_the_loaded_model_trains_casts_and_takes_adapters(tmp_path):
    model = compressed(tiny_bert(), tmp_path, modules_to_save=["classifier"])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded.eval()), logits(model), rtol=1e-5, atol=1e-5)
    rows = [{"input_ids": row, "labels": 0} for row in tokens()]
    args = transformers.TrainingArguments(str(tmp_path / "out"), max_steps=2, use_cpu=True, report_to=[])
    transformers.Trainer(loaded, args, train_dataset=rows).train()
    assert loaded.half().dtype == torch.float16
    lora = get_peft_model(loaded.float(), LoraConfig(target_modules=["up"]))
    assert lora(input_ids=tokens()).logits.isfinite().all()
    assert isinstance(AutoModel.from_pretrained(tmp_path).encoder.layer[0].attention.self.query, Factored)


def test_without_the_import_loading_fails_and_says_what_to_install(tmp_path):
    compressed(tiny_bert(), tmp_path)
    code = """if True:
        import sys, transformers
        folder = sys.argv[1]
        assert transformers.AutoConfig.from_pretrained(folder).model_type == "bert"
        for cls in (transformers.AutoModelForSequenceClassification, transformers.BertForSequenceClassification):
            try:
                cls.from_pretrained(folder)
            except ValueError as error:
                assert "install it as its README says" in str(error) and "import oialr_peft" in str(error), error
            else:
                raise SystemExit("it loaded")
        assert "oialr_peft" not in sys.modules
        import oialr_peft
        transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)


def test_a_full_disk_leaves_the_last_good_files(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    model = compressed(tiny_gpt2(), folder)
    good = {file.name: file.read_bytes() for file in folder.iterdir()}
    disturb(model)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("oialr_peft.export.publish.file_hash", full)
        with pytest.raises(OSError, match="No space left"):
            save_compressed(model, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == good
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    (folder / "adapter_config.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    save_compressed(model, folder)
    names = {file.name for file in folder.iterdir()}
    assert "notes.txt" in names
    assert "adapter_config.json" not in names
    assert (folder / "model.safetensors").read_bytes() != good["model.safetensors"]


def edit_record(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def test_damaged_checkpoints_are_refused_with_the_name_of_the_tensor(tmp_path):
    compressed(tiny_bert(), tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    good = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["layers"]
    name = "bert.encoder.layer.0.attention.self.query"
    edit_record(tmp_path, layers={**good, name: 17})
    with pytest.raises(ValueError, match=rf"'{name}' of the compressed model has rank 17; .* min\(out, in\) = 16"):
        load(tmp_path)
    edit_record(tmp_path, layers=good, format_version=2)
    with pytest.raises(ValueError, match=r"version 2; .* reads versions up to 1\. Upgrade it, as its README"):
        load(tmp_path)
    edit_record(tmp_path, format_version=1, files={})  # as a file of an earlier version: no hash to compare
    tensors = load_file(tmp_path / "model.safetensors")
    missing = {key: value for key, value in tensors.items() if key != f"{name}.down.weight"}
    save_file(missing, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks the tensor '{name}.down.weight'"):
        load(tmp_path)
    if transformers.__version__ >= "5":  # transformers 4 opens files before it asks us
        save_file({**tensors, f"{name}.down.weight": torch.empty(0)}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=rf"'{name}.down.weight' in '.*model.safetensors' has shape \[0\]"):
            load(tmp_path)
    with pytest.raises(ValueError, match="has none of the 13 layers"):
        transformers.GPT2Model.from_pretrained(tmp_path, config=gpt2_with(tmp_path))


def gpt2_with(folder):
    record = json.loads((folder / "config.json").read_text())["quantization_config"]
    return transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, quantization_config=record)


def test_bad_calls(tmp_path):
    (tmp_path / "file").write_text("")
    model = get_peft_model(tiny_llama(), OIALRConfig(r=2))
    with pytest.raises(ValueError, match="`path` must be a folder, but"):
        save_compressed(model, tmp_path / "file")
    with pytest.raises(TypeError, match="no active OIALR adapter to compress"):
        save_compressed(tiny_llama(), tmp_path / "out")
    with pytest.raises(TypeError, match="sentence-transformers and diffusers; got MLP"):
        save_compressed(get_peft_model(MLP(), OIALRConfig(r=2)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saving_and_loading_say_nothing_of_deprecated_fields(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        transformers.configuration_utils.logger, "warning_once", lambda *words, **_: said.append(words)
    )
    compressed(tiny_bert(), tmp_path)
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert said == []
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == WORDS


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_what_is_written_under_autocast_is_not_rounded(make, tmp_path):
    model = compressed(make(), tmp_path / "plain", r=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        save_compressed(model, tmp_path / "autocast")
        merged = {name: weight.dense(torch.float32) for name, weight in adapted_weights(model).items()}
    plain, rounded = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "autocast"))
    assert {name: torch.equal(plain[name], rounded[name]) for name in plain} == dict.fromkeys(plain, True)
    for name, weight in adapted_weights(model).items():
        assert torch.equal(weight.dense(torch.float32), merged[name]), name
