"""Layers whose weight is made from others: left alone with a reason, since what trains in its place would be lost."""

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from oialr_peft import OIALRConfig
from tests.conftest import MLP


WAYS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight_norm of old": weight_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
}


@pytest.mark.parametrize("settings", [{}, {"delay": 2, "train_rest": True}, {"residual": True, "r": 3}])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_is_left_alone_with_a_reason_or_refused_by_name(way, settings):
    model = MLP()
    WAYS[way](model.middle)
    with pytest.raises(ValueError, match=r"'middle' computes its weight from other parameters .* plain first"):
        get_peft_model(model, OIALRConfig(target_modules=["middle"], **settings))
    selection = get_peft_model(model, OIALRConfig(**settings)).base_model.selection
    assert "middle" not in selection.chosen
    assert "computes its weight" in selection.skipped["middle"]
    assert not [name for name in selection.skipped if "parametrizations" in name]


def test_a_saved_adapter_is_not_put_on_such_a_layer(tmp_path):
    get_peft_model(MLP(), OIALRConfig()).save_pretrained(tmp_path)
    model = MLP()
    parametrizations.weight_norm(model.middle)
    with pytest.raises(ValueError, match="'middle' of the saved adapter computes its weight"):
        PeftModel.from_pretrained(model, tmp_path)
    parametrize.remove_parametrizations(model.middle, "weight")
    PeftModel.from_pretrained(model, tmp_path)


def test_one_that_was_made_plain_again_is_taken():
    model = MLP()
    parametrizations.weight_norm(model.middle)
    parametrize.remove_parametrizations(model.middle, "weight")
    assert "middle" in get_peft_model(model, OIALRConfig()).base_model.ranks()


PROJECTIONS = {
    "in_proj of spectral_norm": lambda attention: parametrizations.spectral_norm(attention, "in_proj_weight"),
    "in_proj pruned": lambda attention: prune.l1_unstructured(attention, "in_proj_weight", amount=0.5),
    "out_proj of old weight_norm": lambda attention: weight_norm(attention.out_proj),
    "out_proj pruned": lambda attention: prune.l1_unstructured(attention.out_proj, "weight", amount=0.5),
}


@pytest.mark.parametrize("way", PROJECTIONS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_attention_with_such_a_projection_is_left_alone(way):
    model = nn.Sequential(nn.MultiheadAttention(16, 2), nn.Linear(16, 16))
    PROJECTIONS[way](model[0])
    selection = get_peft_model(model, OIALRConfig()).base_model.selection
    assert selection.chosen == ["1"]
    assert "computes its weight" in selection.skipped["0"]


def test_a_real_model_keeps_what_it_was_trained_to():
    """VITS, of which a quarter of the layers has weight_norm."""
    config = transformers.VitsConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, flow_size=16,
        spectrogram_bins=9, prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=2, upsample_initial_channel=16,
        upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
        duration_predictor_num_flows=1, duration_predictor_filter_channels=16, posterior_encoder_num_wavenet_layers=2,
    )  # fmt: skip
    model = transformers.VitsModel(config).eval()
    normed = [name for name, module in model.named_modules() if parametrize.is_parametrized(module)]
    peft_model = get_peft_model(model, OIALRConfig())
    assert normed
    assert not set(normed) & set(peft_model.base_model.ranks())
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    torch.manual_seed(0)
    expected = peft_model(input_ids=torch.arange(1, 9)[None]).waveform
    torch.manual_seed(0)
    torch.testing.assert_close(peft_model.merge_and_unload()(input_ids=torch.arange(1, 9)[None]).waveform, expected)
