"""LoRA on a compressed model takes the names of the dense one's layers."""

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from oialr_peft import OIALRConfig, save_compressed
from oialr_peft.export.lora_layer import LoraFactored
from tests.conftest import output, tiny_bert, tiny_gpt2, tokens
from tests.helpers import disturb


def logits(model):
    return output(model, {"input_ids": tokens()})


@pytest.fixture
def bert(tmp_path):
    """Loads a compressed classifier."""
    save_compressed(get_peft_model(tiny_bert(), OIALRConfig(r=0.25)), tmp_path / "small")
    return lambda: AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval()


@pytest.mark.parametrize("targets", [None, ["query", "dense"], r".*layer\.1.*value"])
def test_the_dense_models_names_are_taken(targets, bert):
    model = get_peft_model(bert(), LoraConfig(target_modules=targets, r=2))
    wrapped = [name for name, module in model.named_modules() if isinstance(module, LoraFactored)]
    assert wrapped
    assert not any(name.endswith((".down", ".up")) for name in wrapped)


def test_it_trains_saves_loads_and_switches_off(bert, tmp_path):
    model = get_peft_model(bert(), LoraConfig(target_modules=["query", "dense"], r=2))
    rows = [{"input_ids": row, "labels": 0} for row in tokens()]
    args = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=2, learning_rate=0.1, use_cpu=True, report_to=[]
    )
    before = logits(model)
    transformers.Trainer(model, args, train_dataset=rows).train()
    trained = logits(model)
    assert not torch.allclose(trained, before)
    model.save_pretrained(tmp_path / "lora")
    loaded = PeftModel.from_pretrained(bert(), tmp_path / "lora")
    assert torch.equal(logits(loaded), trained)
    loaded.add_adapter("other", LoraConfig(target_modules=["query"], r=3))
    loaded.set_adapter("other")  # zero at first
    torch.testing.assert_close(logits(loaded), logits(bert()))
    assert torch.equal(logits(loaded.unload()), logits(bert()))


def test_the_adapter_goes_on_the_dense_twin_too(bert, tmp_path):
    compressed = bert()
    model = get_peft_model(compressed, LoraConfig(target_modules=["query", "value"], r=2))
    disturb(model)
    model.save_pretrained(tmp_path / "lora")
    dense = PeftModel.from_pretrained(bert().dequantize(), tmp_path / "lora")
    torch.testing.assert_close(logits(dense), logits(model))
    merged = dense.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(model))


def test_transposed_layers_and_transformers_own_way(tmp_path):
    save_compressed(get_peft_model(tiny_gpt2(), OIALRConfig(r=0.25)), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    before = logits(model)
    model.add_adapter(LoraConfig(target_modules=["c_attn"], r=2))
    assert torch.equal(logits(model), before)
    disturb(model)
    assert not torch.allclose(logits(model), before)


def test_what_needs_the_dense_weight_is_refused(bert):
    model = get_peft_model(bert(), LoraConfig(target_modules=["query"]))
    with pytest.raises(NotImplementedError, match=r"cannot be merged into a compressed layer.*dequantize"):
        model.merge_and_unload()
    for variant, said in (({"use_dora": True}, "use_dora=True"), ({"init_lora_weights": "pissa"}, "'pissa'")):
        with pytest.raises(ValueError, match=f"{said}.* works on the dense weight"):
            get_peft_model(bert(), LoraConfig(target_modules=["query"], **variant))
