"""A dense model that is made from the config of a compressed one is saved and loaded as the dense model that it is."""

import json

import pytest
import torch
import transformers
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from oialr_peft import OIALRConfig, save_compressed
from oialr_peft.compat.patch import is_patched
from tests.conftest import tiny_bert
from tests.export.test_compressed import compressed, logits
from tests.helpers import disturb


load = AutoModelForSequenceClassification.from_pretrained


@pytest.fixture
def twin(tmp_path):
    """A model of new weights from the config of the compressed model in "small"."""
    compressed(tiny_bert(), tmp_path / "small")
    return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tmp_path / "small")).eval()


def test_transformers_still_has_the_method_that_is_extended():
    assert is_patched(transformers.PreTrainedModel, "save_pretrained")


@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
def test_a_twin_is_saved_as_a_plain_model(twin, max_shard_size, tmp_path):
    twin.save_pretrained(tmp_path / "dense", max_shard_size=max_shard_size)
    written = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not {"quantization_config", "transformers_weights"} & written.keys()
    torch.testing.assert_close(logits(load(tmp_path / "dense").eval()), logits(twin))
    again = load(tmp_path / "small", config=twin.config)  # the config is its owner's, and as it was
    assert again.num_parameters() == load(tmp_path / "small").num_parameters() < twin.num_parameters()


def test_a_twin_is_compressed_on_its_own(twin, tmp_path):
    model = get_peft_model(twin, OIALRConfig(r=3, target_modules=["query"])).eval()
    disturb(model)
    save_compressed(model, tmp_path / "out")
    assert set(load(tmp_path / "out").config.quantization_config.layers) == model.base_model.ranks().keys()
    torch.testing.assert_close(logits(load(tmp_path / "out").eval()), logits(model))


def test_a_body_of_two_factor_layers_keeps_its_record(twin, tmp_path):
    loaded = load(tmp_path / "small").eval()
    loaded.bert.save_pretrained(tmp_path / "body")
    body = transformers.BertModel.from_pretrained(tmp_path / "body").eval()
    assert body.state_dict().keys() == loaded.bert.state_dict().keys()


def test_a_dense_file_under_a_compressed_config_is_named_with_the_way_out(twin, tmp_path):
    """As it was written before, and as it is where config and weights are written apart."""
    twin.save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "config.json").write_text((tmp_path / "small" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"the model is dense, .* needs `del config.quantization_config` first"):
        load(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    for name in ("quantization_config", "transformers_weights", "torch_dtype"):
        del config[name]
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    found, saved = load(tmp_path / "dense").state_dict(), load_file(tmp_path / "dense" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in saved.items())
