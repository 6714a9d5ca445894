"""bases="longer": the longer side's basis trains along, in one Parameter, through every change of form."""

import copy
from pathlib import Path

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn

from oialr_peft import MuonAdamW, OIALRConfig, OIALRUpdater, rank_report
from tests.conftest import MLP


FIELDS = {"bases": "longer", "update_interval": 5, "train_rest": True, "layer_step": 1.0}


def adapt(model=None, **fields):
    torch.manual_seed(0)
    return get_peft_model(model or MLP(), OIALRConfig(**{**FIELDS, **fields}))


def shapes(model):
    return {n.split(".")[-3]: tuple(p.shape) for n, p in model.named_parameters() if "oialr_" in n}


def train(model, optimizer, updater, steps, start=0):
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 12, generator=generator).to(next(model.parameters()).dtype)
        (model(x) - x[:, :4].tanh()).square().mean().backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()


def test_the_parameter_stays_itself_from_dense_to_one_side_to_sigma():
    model = adapt(delay=5, r=0.5, freeze_bases=15)
    parameters = {n.split(".")[-3]: p for n, p in model.named_parameters() if "oialr_" in n}
    optimizer = MuonAdamW.from_model(model)
    updater = OIALRUpdater(model, optimizer)
    expected = {
        4: {"first": (24, 12), "middle": (24, 24), "last": (16, 24)},
        5: {"first": (24, 6), "middle": (24, 12), "last": (8, 24)},  # the longer side trains
        15: {"first": (6, 6), "middle": (12, 12), "last": (8, 8)},
    }
    for steps, wanted in expected.items():
        train(model, optimizer, updater, steps, start=updater.steps)
        assert shapes(model) == wanted
    assert parameters == {n.split(".")[-3]: p for n, p in model.named_parameters() if "oialr_" in n}


@pytest.mark.parametrize(
    "layer", [nn.Linear(24, 12), nn.Linear(12, 24), nn.Conv2d(6, 24, 3), nn.Conv1d(8, 4, 3, groups=2)]
)
def test_at_full_rank_it_is_dense_training_for_every_shape(layer):
    """Momentum SGD sees no basis: the same losses as the dense layer's, to rounding, across updates."""
    layer = layer.double()
    shape = {nn.Linear: (3, layer.weight.shape[1]), nn.Conv2d: (2, 6, 5, 5), nn.Conv1d: (2, 8, 9)}[type(layer)]

    def losses(model, updater_of=lambda optimizer: None):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        updater, found = updater_of(optimizer), []
        for step in range(20):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            loss = model(x).square().mean() + model(x).mean()
            loss.backward()
            optimizer.step()
            if updater is not None:
                updater.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
        return torch.tensor(found)

    dense = nn.Sequential(copy.deepcopy(layer))
    fields = {**FIELDS, "sigma_cutoff": 0, "target_modules": ["0"]}
    model = get_peft_model(nn.Sequential(copy.deepcopy(layer)), OIALRConfig(**fields))
    torch.testing.assert_close(
        losses(model, lambda optimizer: OIALRUpdater(model, optimizer)), losses(dense), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("make", [MuonAdamW.from_model, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2)])
def test_resume_is_exact_in_either_form(make, tmp_path):
    def start(model):
        optimizer = make(model)
        return optimizer, OIALRUpdater(model, optimizer, total_steps=30)

    fields = {"delay": 5, "r": 0.6, "freeze_bases": 20, "lr_scale": "match", "sigma_cutoff": 0.3}
    whole = adapt(**fields)
    train(whole, *start(whole), steps=30)
    for half in (3, 12, 24):
        first = adapt(**fields)
        optimizer, updater = start(first)
        train(first, optimizer, updater, half)
        first.save_pretrained(tmp_path / str(half))
        states = copy.deepcopy((optimizer.state_dict(), updater.state_dict()))
        torch.manual_seed(1)
        second = PeftModel.from_pretrained(MLP(), tmp_path / str(half), is_trainable=True)
        assert shapes(second) == shapes(first)
        optimizer, updater = start(second)
        optimizer.load_state_dict(states[0])
        updater.load_state_dict(states[1])
        train(second, optimizer, updater, 30, start=half)
        assert shapes(second) == shapes(whole)
        expected = dict(whole.named_parameters())
        assert all(torch.equal(p, expected[name]) for name, p in second.named_parameters())


def test_a_file_that_lost_a_basis_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    adapt(r=0.5).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.first.oialr_vh"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"lacks the tensor 'first.oialr_(u|vh)'"):
        PeftModel.from_pretrained(MLP(), tmp_path)


def test_a_live_adapter_takes_the_form_of_the_file_and_refuses_what_lost_a_basis(tmp_path):
    saved, live = adapt(r=0.5), adapt(delay=5, r=0.5)
    tensors = get_peft_model_state_dict(saved)
    del tensors["base_model.model.first.oialr_vh"]  # its longer side, the left one, trains
    with pytest.raises(ValueError, match=r"lacks the tensor 'first.oialr_(u|vh)'"):
        set_peft_model_state_dict(live, tensors)
    full = get_peft_model_state_dict(adapt())
    del full["base_model.model.first.oialr_vh"]  # of a tall weight the right side never trains
    with pytest.raises(ValueError, match=r"lacks the tensor 'first.oialr_(u|vh)'"):
        set_peft_model_state_dict(live, full)
    residual = adapt(bases="frozen", residual=True, train_rest=False)
    with pytest.raises(ValueError, match=r"lacks the tensor 'first.oialr_u'"):
        set_peft_model_state_dict(residual, get_peft_model_state_dict(adapt(train_rest=False)))
    set_peft_model_state_dict(live, get_peft_model_state_dict(saved))
    assert shapes(live) == shapes(saved)
    x = torch.randn(3, 12)
    assert torch.equal(live(x), saved(x))


def test_merging_and_bf16_bases():
    model = adapt(MLP(dtype=torch.bfloat16), r=0.5, train_rest=False)
    x = torch.randn(3, 12, dtype=torch.bfloat16)
    expected = model(x)
    assert expected.dtype == torch.bfloat16
    torch.testing.assert_close(model.merge_and_unload()(x), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bases": "longer", "moments": "slice"}, "is a rule for frozen bases; with bases='longer'"),
        ({"target_size": 0.5, "moments": "slice"}, "or set bases='frozen'"),
        ({"freeze_bases": 10}, "`freeze_bases` has no effect with bases='frozen'"),
        ({"bases": "both"}, "`bases` must be one of frozen, longer; got 'both'"),
        ({"lr_scale": "double"}, "`lr_scale` must be 'match', 'none' or a positive number; got 'double'"),
        ({"lr_scale": -1.0}, "got -1.0"),
        ({"delay": 1.5}, r"`delay` as a float is a share of the run and must be in \(0, 1\); got 1.5"),
        ({"update_interval": 0}, "`update_interval` must be at least 1 optimizer steps; got 0"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        OIALRConfig(**fields)


def test_a_share_needs_the_length_of_the_run():
    model = adapt(delay=0.5)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"`delay=0.5` is a share of the run.*total_steps"):
        OIALRUpdater(model, optimizer)
    OIALRUpdater(model, optimizer, total_steps=100)


def test_an_adapter_saved_before_there_was_a_scale_goes_on_without_one():
    files = Path(__file__).parent / "records" / "files"
    saved = next(path.parent for path in sorted(files.rglob("adapter_config.json")))
    assert PeftConfig.from_pretrained(saved).lr_scale == "none"
    assert OIALRConfig().lr_scale == "match"


def test_what_is_held_is_counted_as_it_is():
    layers = rank_report(adapt(r=0.5)).layers
    assert {x.name: x.parameters for x in layers} == {"first": 6 * 36, "middle": 12 * 48, "last": 8 * 40}


def test_a_size_moves_bases_and_nothing_else_does_unless_it_is_said(tmp_path):
    fields = ({}, {"r": 0.5}, {"target_size": 0.5}, {"target_size": 0.5, "bases": "frozen"})
    assert [OIALRConfig(**given).bases for given in fields] == ["frozen", "frozen", "longer", "frozen"]
    for given in fields:  # a file says which, so that another default changes no adapter
        OIALRConfig(**given).save_pretrained(tmp_path)
        assert PeftConfig.from_pretrained(tmp_path).bases == OIALRConfig(**given).bases
    assert OIALRConfig(target_size=0.5, freeze_bases=0.8).freeze_bases == 0.8
