"""W - W0 as LoRA: exact at full rank, its loss reported below, truthful about what it cannot hold."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from oialr_peft import OIALRConfig
from oialr_peft.export.lora import save_as_lora
from tests.conftest import output, tiny_gpt2, tiny_llama, tokens
from tests.helpers import disturb


IDS = {"input_ids": tokens()}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_lora_adapter_gives_the_same_logits_and_tells_what_it_loses(make, tmp_path):
    base = make()
    state = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, OIALRConfig(target_modules=["q_proj", "up_proj", "c_attn", "c_fc"], r=0.5)).eval()
    disturb(model)
    losses = save_as_lora(model, tmp_path / "exact", rank=1.0)
    assert losses.keys() == model.base_model.ranks().keys()
    assert max(losses.values()) < 1e-5
    fresh = make()
    fresh.load_state_dict(state)
    lora = PeftModel.from_pretrained(fresh, tmp_path / "exact").eval()
    torch.testing.assert_close(output(lora, IDS), output(model, IDS), rtol=1e-4, atol=1e-5)
    lossy = save_as_lora(model, tmp_path / "lossy", rank=2)
    assert min(lossy.values()) > 0.05


def test_what_lora_cannot_hold_is_refused(tmp_path):
    rest = get_peft_model(tiny_llama(), OIALRConfig(train_rest=True))
    with pytest.raises(ValueError, match="With `train_rest` weights outside the layers changed too"):
        save_as_lora(rest, tmp_path, rank=2)
    for layer, why in (
        (nn.Conv1d(8, 8, 3), "'layer' has no LoRA form: it is a layer of the kind Conv1d, .*`save_compressed`"),
        (nn.MultiheadAttention(8, 2), r"'layer\.\w+' has no LoRA form: it is a part of an attention that was taken"),
    ):
        model = nn.Sequential(nn.Linear(8, 8))
        model.layer = layer
        with pytest.raises(TypeError, match=why):
            save_as_lora(get_peft_model(model, OIALRConfig(target_modules=["layer"])), tmp_path, rank=2)


def test_a_layer_of_another_adapter_is_named(tmp_path):
    model = get_peft_model(tiny_llama(), OIALRConfig(target_modules=["q_proj"], r=2))
    model.add_adapter("other", OIALRConfig(target_modules=["k_proj"], r=2))
    with pytest.raises(TypeError, match=r"'model.*k_proj' .* another adapter than the active 'default'"):
        save_as_lora(model, tmp_path, rank=2)


@pytest.mark.parametrize("settings", [{"keep_base_weights": False}, {"delay": 3}])
def test_freed_base_weights_are_named_and_come_back_where_they_are_kept(settings, tmp_path):
    base = tiny_llama()
    state = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, OIALRConfig(target_modules=["q_proj"], r=0.5, **settings)).eval()
    disturb(model)
    with pytest.raises(TypeError, match=r"q_proj' has no LoRA form: its base weight W0 was freed .*`keep_base"):
        save_as_lora(model, tmp_path / "lora", rank=1.0)
    model.save_pretrained(tmp_path / "adapter")
    config = OIALRConfig.from_pretrained(tmp_path / "adapter")
    config.keep_base_weights = True
    fresh = tiny_llama()
    fresh.load_state_dict(state)
    kept = PeftModel.from_pretrained(fresh, tmp_path / "adapter", config=config).eval()
    assert max(save_as_lora(kept, tmp_path / "lora", rank=1.0).values()) < 1e-5
    torch.testing.assert_close(output(kept, IDS), output(model, IDS))
