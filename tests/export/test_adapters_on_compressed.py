"""Adapters on a compressed model, whose layers are two each: trained on, merged, taken off."""

import itertools

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from oialr_peft import OIALRConfig, save_compressed
from oialr_peft.export.modules import Factored
from tests.conftest import output, tiny_bert, tiny_gpt2, tiny_mixtral, tokens
from tests.helpers import disturb


class AttentionConfig(PretrainedConfig):
    model_type = "tests-attention"


class Attention(PreTrainedModel):
    config_class = AttentionConfig

    def __init__(self, config):
        super().__init__(config)
        self.words, self.attention = nn.Embedding(48, 32), nn.MultiheadAttention(32, 4)
        self.classifier = nn.Linear(32, 24)
        self.post_init()

    def forward(self, input_ids):
        x = self.words(input_ids)
        return CausalLMOutput(logits=self.classifier(self.attention(x, x, x)[0]))


MODELS = {
    "bert": (tiny_bert, AutoModelForSequenceClassification),
    "gpt2": (tiny_gpt2, AutoModelForCausalLM),
    "mixtral": (tiny_mixtral, AutoModelForCausalLM),
    "attention": (lambda: Attention(AttentionConfig()), Attention),
}
ADAPTERS = {
    "OIALR": lambda: OIALRConfig(),
    "LoRA on both factors": lambda: LoraConfig(target_modules="all-linear", init_lora_weights=False),
    "LoRA on a layer beside them": lambda: LoraConfig(target_modules=r"(.*\.)?(classifier|lm_head)"),
}
LEFT_OUT = {
    ("gpt2", "LoRA on a layer beside them"),  # its one is tied, and PEFT would merge into both
    ("mixtral", "LoRA on both factors"),  # of experts PEFT has none
}


def logits(model):
    return output(model, {"input_ids": tokens()})


@pytest.mark.parametrize("share", [0.25, 1.0], ids=["small", "no smaller"])  # at 1.0 no layer is two
@pytest.mark.parametrize(("model", "adapter"), sorted(set(itertools.product(MODELS, ADAPTERS)) - LEFT_OUT))
def test_an_adapter_merges_and_comes_off(model, adapter, share, tmp_path):
    make, auto = MODELS[model]
    torch.manual_seed(0)
    dense = make()
    disturb(dense)
    save_compressed(get_peft_model(dense, OIALRConfig(r=share)), tmp_path / "small")

    def load(name="small"):
        return auto.from_pretrained(tmp_path / name).eval()

    model = get_peft_model(load(), ADAPTERS[adapter]()).eval()
    disturb(model)
    trained = logits(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), trained, atol=1e-5, rtol=1e-4)
    assert any(isinstance(module, Factored) for module in merged.modules()) == (share < 1)
    assert merged.state_dict().keys() == load().state_dict().keys()
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load("merged")), trained, atol=1e-5, rtol=1e-4)
    off = get_peft_model(load(), ADAPTERS[adapter]())
    disturb(off)
    torch.testing.assert_close(logits(off.unload()), logits(load()))  # values from a file may lie otherwise in memory


def test_an_adapter_of_the_dense_model_is_refused_by_name(tmp_path):
    model = get_peft_model(tiny_bert(), OIALRConfig(r=4))
    model.save_pretrained(tmp_path / "adapter")
    save_compressed(model, tmp_path / "small")
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"query' of the saved adapter is a .*Factored.* own base model"):
        PeftModel.from_pretrained(small, tmp_path / "adapter")
