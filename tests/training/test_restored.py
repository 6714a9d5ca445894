"""Earlier weights that are loaded in the middle of a run: what the optimizer keeps is of other bases then."""

import copy
import warnings

import pytest
import torch
import transformers
from peft import get_peft_model

from oialr_peft import OIALRCallback, OIALRConfig, OIALRUpdater
from oialr_peft.errors import OIALRWarning
from oialr_peft.layer import adapted_weights
from tests.conftest import MLP
from tests.training.test_loops import start, train


LOADED = "moments of another rank or in other bases for .* first 'first'"
KINDS = {
    "plain": (torch.optim.AdamW, {"foreach": False}),
    "fused": (torch.optim.AdamW, {"fused": True}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
}


def run(kind="plain", **settings):
    torch.manual_seed(0)
    given = {"update_interval": 3, "layer_step": 1.0, "sigma_cutoff": 0.3, **settings}
    model = get_peft_model(MLP(), OIALRConfig(**given))
    make, arguments = KINDS[kind]
    optimizer = make([p for p in model.parameters() if p.requires_grad], lr=1e-2, **arguments)
    return model, optimizer, OIALRUpdater(model, optimizer)


class NotYet:
    """In the place of an updater that is called later."""

    def step(self):
        pass


def states(*parts):
    return copy.deepcopy([part.state_dict() for part in parts])


def moments(model, optimizer):
    return {name: optimizer.state[weight.core] for name, weight in adapted_weights(model).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"delay": 4}], ids=["higher ranks", "the dense phase"])
def test_going_back_to_earlier_weights_starts_the_moments_afresh(kind, settings):
    """A fused kernel would read the moments of a lower rank past their end."""
    model, optimizer, updater = run(kind, **settings)
    train(model, optimizer, updater, range(2))
    ranks = model.base_model.ranks()
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer, updater, range(2, 13))
    assert model.base_model.ranks() != ranks
    model.load_state_dict(best)
    with pytest.warns(OIALRWarning, match=LOADED):
        train(model, optimizer, updater, [13])
    fresh, alone, _ = run(kind, **settings)
    fresh.load_state_dict(best)
    train(fresh, alone, updater, [13])
    for name, state in moments(model, optimizer).items():
        expected = moments(fresh, alone)[name]
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, msg=f"{name} {key}")


def test_turned_bases_of_the_same_rank_are_other_bases():
    model, optimizer, updater = run(sigma_cutoff=0.0)
    train(model, optimizer, updater, range(4))
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer, updater, range(4, 11))
    model.load_state_dict(best)
    with pytest.warns(OIALRWarning, match=LOADED):
        train(model, optimizer, updater, [11])
    assert {int(state["step"]) for state in moments(model, optimizer).values()} == {1}


def test_weights_that_are_swapped_in_and_back_leave_the_moments():
    """As an average is for an evaluation."""
    swapped, plain = run(), run()
    for model, optimizer, updater in (swapped, plain):
        train(model, optimizer, updater, range(7))
    model = swapped[0]
    average, own = copy.deepcopy(model.state_dict()), copy.deepcopy(model.state_dict())
    model.load_state_dict({name: 0.5 * t if "sigma" in name else t for name, t in average.items()})
    model.load_state_dict(own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(*swapped, range(7, 13))
    train(*plain, range(7, 13))
    for name, tensor in plain[0].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_model_optimizer_and_updater_go_back_together_without_a_word(order):
    parts = run()
    train(*parts, range(4))
    saved = states(*parts)
    train(*parts, range(4, 13))
    expected = copy.deepcopy(parts[0].state_dict())
    for place in order:
        parts[place].load_state_dict(saved[place])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(*parts, range(4, 13))
    for name, tensor in expected.items():
        assert torch.equal(tensor, parts[0].state_dict()[name]), name


def test_the_scale_of_a_step_is_that_of_the_ranks_that_were_loaded():
    model, optimizer, updater = run(activation_aware=False)
    train(model, optimizer, updater, range(2))
    best, scales = copy.deepcopy(model.state_dict()), updater._step_scale.scales()
    train(model, optimizer, updater, range(2, 14))
    assert updater._step_scale.scales() != scales
    model.load_state_dict(best)
    with pytest.warns(OIALRWarning, match=LOADED):
        train(model, optimizer, updater, [14])
    assert updater._step_scale.scales() == scales


@pytest.mark.parametrize("settings", [{}, {"delay": 9}], ids=["cuts", "a rank that is chosen by outputs"])
def test_a_checkpoint_between_the_optimizer_s_step_and_the_updater_s_loses_none(settings):
    """As Lightning's ModelCheckpoint writes it, before the module's own `on_train_batch_end`."""
    model, optimizer, updater = whole = start(**settings)
    saved = []
    for step in range(20):
        train(model, optimizer, NotYet(), [step])
        if step == 7:
            saved = states(*whole)
        updater.step()
    resumed = start(**settings)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    assert saved[2]["steps"] == 7
    assert resumed[2].state_dict() == saved[2]
    train(*resumed, range(8, 20))
    assert resumed[2].steps == updater.steps == 20
    assert resumed[0].base_model.ranks() == model.base_model.ranks()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed[0].state_dict()[name]), name


@pytest.mark.parametrize("pending", [-1, 1.5, "2", None])
def test_a_damaged_count_is_refused(pending):
    _, _, updater = start()
    with pytest.raises(ValueError, match="`pending` must be a whole number of optimizer steps"):
        updater.load_state_dict({"steps": 3, "pending": pending})


def test_an_update_that_was_interrupted_leaves_a_run_that_goes_on(monkeypatch):
    """Between the new bases of a layer and its moments."""
    model, optimizer, updater = run("fused")
    train(model, optimizer, updater, range(2))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(updater.carrier, "transport", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(model, optimizer, updater, [2])
    optimizer.zero_grad()
    with pytest.warns(OIALRWarning, match="or an update was interrupted"):
        train(model, optimizer, updater, range(3, 9))
    assert min(model.base_model.ranks().values()) < 12


def test_a_callback_s_state_between_the_two_steps_has_the_step_too(tmp_path):
    """As transformers' checkpoint on SIGTERM asks for it, before any other callback."""
    model, optimizer, _ = start()
    callback, state = OIALRCallback(), transformers.TrainerState(max_steps=6)
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[])
    callback.on_train_begin(arguments, state, None, model=model, optimizer=optimizer)
    model(torch.ones(2, 12)).square().mean().backward()
    optimizer.step()
    assert callback.state()["attributes"]["progress"] == {"steps": 0, "pending": 1}
    callback.on_step_end(arguments, state, None, model=model)
    assert callback.state()["attributes"]["progress"] == {"steps": 1}


def test_an_update_at_a_step_that_was_pending_is_made_though_it_is_asked_for_at_once():
    """By a loop that calls the updater for each micro-batch."""
    model, optimizer, updater = start()
    train(model, optimizer, updater, range(2))
    train(model, optimizer, NotYet(), [2])
    saved = states(model, optimizer, updater)
    resumed = start()
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    resumed[0](torch.ones(2, 12)).square().mean().backward()
    report = resumed[2].step()
    assert report is not None
    assert report.update_number == updater.step().update_number == 1
