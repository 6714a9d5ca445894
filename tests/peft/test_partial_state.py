"""State dicts that hold a part of an adapter: the rest stays, and nothing is emptied on the way to an error."""

import warnings

import pytest
import torch
from peft import get_peft_model

from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.errors import OIALRWarning
from tests.conftest import MLP


MODES = {
    "frozen": {"layer_step": 1.0, "sigma_cutoff": 0.5},
    "longer": {"bases": "longer", "layer_step": 1.0, "sigma_cutoff": 0.5},
    "after a delay": {"delay": 1, "train_rest": True, "layer_step": 1.0, "sigma_cutoff": 0.5},
    "residual": {"residual": True, "r": 4},
}
INPUTS = torch.linspace(-1, 1, 96).view(8, 12)


def trained(mode: str, steps: int = 5):
    torch.manual_seed(0)
    model = get_peft_model(MLP(), OIALRConfig(update_interval=2, **MODES[mode]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater = OIALRUpdater(model, optimizer, total_steps=100)
    for _ in range(steps):
        model(INPUTS).square().mean().backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("mode", MODES)
def test_what_trains_goes_back_beside_the_bases_of_now(mode):
    model = trained(mode)
    expected = model(INPUTS).detach()
    best = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", OIALRWarning)
        assert not model.load_state_dict(best, strict=False).unexpected_keys
    assert torch.equal(model(INPUTS), expected)
    said = [(str(warning.message)[:60], warning.filename) for warning in caught]  # once, not of every layer
    without = ("This state dict has sigmas of OIALR layers without their bas", __file__)
    assert said == ([] if mode == "residual" else [without])


@pytest.mark.parametrize("lacking", ["oialr_u", "oialr_vh", "oialr_"])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_strict_load_that_fails_leaves_the_layers(lacking, steps):
    model, other = trained("frozen", steps), trained("frozen", 12)
    expected = model(INPUTS).detach()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state = {name: tensor for name, tensor in other.state_dict().items() if lacking not in name}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)
    changed = (model(INPUTS) - expected).abs().max()
    assert changed < 1  # biases were there and are loaded
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    assert all(weight.abs().max() > 0 for name, weight in model.state_dict().items() if "oialr_" in name)


def test_a_sigma_of_another_rank_without_bases_is_refused_by_torch():
    model = trained("frozen")
    expected = model(INPUTS).detach()
    name = next(name for name, _ in model.named_parameters() if "oialr_sigma" in name)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({name: torch.zeros(2, 2)}, strict=False)
    assert torch.equal(model(INPUTS), expected)
