"""Loops of one's own: closures, the order of restoring, copies, one config for two models, parts with their own."""

import copy
import io
import itertools
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from oialr_peft import MuonAdamW, OIALRCallback, OIALRConfig, OIALRUpdater, save_compressed
from oialr_peft.errors import OIALRWarning
from tests.conftest import MLP, tiny_bert, tiny_gpt2, tokens
from tests.peft.test_partial_state import INPUTS


def start(**settings):
    torch.manual_seed(0)
    given = {"r": 4, "update_interval": 3, "layer_step": 1.0, "sigma_cutoff": 0.3, **settings}
    model = get_peft_model(MLP(), OIALRConfig(**given))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return model, optimizer, OIALRUpdater(model, optimizer, total_steps=100)


def batch(step: int) -> torch.Tensor:
    return INPUTS * (1 + step % 3)


def train(model, optimizer, updater, steps) -> None:
    for step in steps:
        model(batch(step)).square().mean().backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("zero", ["before", "after"])
def test_a_closure_scales_the_step_as_a_plain_loop_does(zero):
    plain, lightning = start(), start()
    train(*plain, range(7))
    model, optimizer, updater = lightning
    for step in range(7):

        def closure(step=step):
            if zero == "before":
                optimizer.zero_grad()
            loss = model(batch(step)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        updater.step()
        if zero == "after":
            optimizer.zero_grad()
    for name, tensor in plain[0].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


class Forgetful(torch.optim.AdamW):
    """Drops its gradients at the end of each step."""

    def step(self, closure=None):
        super().step(closure)
        self.zero_grad()


@pytest.mark.parametrize("way", ["in step", "in a hook"])
def test_gradients_that_are_dropped_within_the_step_scale_it_all_the_same(way):
    steps = []
    for dropping in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(MLP(), OIALRConfig(r=4))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = (Forgetful if dropping and way == "in step" else torch.optim.AdamW)(trained, lr=1e-2)
        if dropping and way == "in a hook":
            optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
        updater = OIALRUpdater(model, optimizer)
        before = [p.detach().clone() for p in trained]
        train(model, optimizer, updater, range(1))
        steps.append([after - start for after, start in zip(trained, before, strict=True)])
    for plain, dropped in zip(*steps, strict=True):
        assert torch.equal(plain, dropped)


@pytest.mark.parametrize("order", list(itertools.permutations(["model", "optimizer", "updater"])))
def test_states_may_be_restored_in_any_order(order):
    whole = start(r=None)
    train(*whole, range(10))
    saved = dict(
        zip(["model", "optimizer", "updater"], [copy.deepcopy(part.state_dict()) for part in whole], strict=True)
    )
    assert saved["updater"]["step_scales"]
    train(*whole, range(10, 16))
    fresh = dict(zip(["model", "optimizer", "updater"], start(r=None), strict=True))
    for name in order:
        fresh[name].load_state_dict(copy.deepcopy(saved[name]))
    train(*fresh.values(), range(10, 16))
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, fresh["model"].state_dict()[name]), name
    assert whole[2].state_dict() == fresh["updater"].state_dict()


def test_a_copy_of_the_model_can_be_pickled_after_the_updater_looked_at_it():
    model, optimizer, updater = start()
    best = copy.deepcopy(model)
    train(model, optimizer, updater, range(2))
    expected = best(INPUTS)
    again = io.BytesIO()
    torch.save(best, again)
    again.seek(0)
    assert torch.equal(torch.load(again, weights_only=False)(INPUTS), expected)


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_one_config_serves_models_of_several_sizes(targets, tmp_path):
    config, small, large = OIALRConfig(target_modules=targets), tiny_gpt2(), tiny_gpt2()
    large.transformer.h.extend(copy.deepcopy(list(large.transformer.h)))
    large.transformer.h.extend(copy.deepcopy(list(large.transformer.h)))  # PEFT shortens the names of 20 and more
    models = [get_peft_model(model, config) for model in (large, small, tiny_bert())]
    assert [len(model.base_model.ranks()) for model in models[:2]] == [32, 8]
    models[0].save_pretrained(tmp_path)  # which writes the ranks
    assert models[0].peft_config["default"] is config  # as PEFT does
    assert get_peft_model(tiny_gpt2(), config)(tokens()).logits.isfinite().all()
    assert not any("attention" in str(name) for name in models[0].peft_config["default"].target_modules)
    config.target_modules = ["c_fc"]  # and what the user says after that counts
    assert len(get_peft_model(tiny_gpt2(), config).base_model.ranks()) == 2


@pytest.mark.parametrize("targets", [None, "all-linear", "ALL-LINEAR"])
def test_a_second_adapter_takes_the_layers_of_the_first(targets):
    config = OIALRConfig(target_modules=targets, keep_base_weights=True)
    model = get_peft_model(tiny_gpt2(), config)
    model.add_adapter("second", OIALRConfig(target_modules=targets, keep_base_weights=True))
    model.add_adapter("third", config)
    for name in ("second", "third"):
        model.set_adapter(name)
        assert len(model.base_model.ranks()) == 8


class Two(nn.Module):
    def __init__(self, first: OIALRConfig, second: OIALRConfig) -> None:
        super().__init__()
        self.first, self.second = get_peft_model(MLP(), first), get_peft_model(MLP(), second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


def test_parts_of_unlike_configs_are_refused_and_alike_ones_trained_as_one():
    model = Two(OIALRConfig(sigma_cutoff=0.9), OIALRConfig(sigma_cutoff=0.0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match=r"`OIALRConfig.sigma_cutoff` is 0.9 in one and 0.0 in another"):
        OIALRUpdater(model, optimizer)
    settings = {"sigma_cutoff": 0.5, "update_interval": 2, "layer_step": 1.0}
    model = Two(OIALRConfig(**settings), OIALRConfig(target_modules=["middle"], r=20, **settings))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    updater = OIALRUpdater(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        train(model, optimizer, updater, range(5))
    assert min(model.first.base_model.ranks().values()) < 12
    assert model.second.base_model.ranks()["middle"] < 24


def test_hooks_that_will_not_be_called_are_told_of():
    model = MLP()
    model.middle.register_forward_hook(lambda *_: None)
    with pytest.warns(OIALRWarning, match="have hooks, first 'middle'"):
        get_peft_model(model, OIALRConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        get_peft_model(model, OIALRConfig(target_modules=["middle"], residual=True, r=2))


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_an_updater_is_not_copied_its_state_goes_over(copying):
    model, optimizer, updater = start()
    train(model, optimizer, updater, range(4))
    with pytest.raises(TypeError, match=r"cannot be copied or pickled.*load_state_dict"):
        copying((model, optimizer, updater))
    other, its_optimizer = copy.deepcopy((model, optimizer))
    again = OIALRUpdater(other, its_optimizer, total_steps=100)
    again.load_state_dict(updater.state_dict())
    for trained in ((model, optimizer, updater), (other, its_optimizer, again)):
        train(*trained, range(4, 16))
    expected = other.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_that_trains_without_updates_is_told_of_and_one_with_them_is_not(copying):
    model, _, _ = start(update_interval=1)
    forgotten, attended = copying(model), copying(model)
    optimizer = torch.optim.AdamW([p for p in attended.parameters() if p.requires_grad])
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        train(attended, optimizer, OIALRUpdater(attended, optimizer), range(4))
    optimizer = torch.optim.AdamW([p for p in forgotten.parameters() if p.requires_grad])
    forgotten(INPUTS).square().mean().backward()
    with pytest.warns(OIALRWarning, match="no OIALR update was made or is to come"):
        optimizer.step()


def test_an_optimizer_of_one_flat_state_is_refused_where_ranks_can_fall():
    model, _, _ = start()
    with pytest.raises(ValueError, match="LBFGS keeps the history of all parameters as one flat vector"):
        OIALRUpdater(model, torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad]))
    added = get_peft_model(MLP(), OIALRConfig(residual=True, r=2))
    OIALRUpdater(added, torch.optim.LBFGS([p for p in added.parameters() if p.requires_grad]))


class Lookahead(torch.optim.Optimizer):
    """Around another optimizer, under one of the names that such wrappers use, with a state of its own."""

    def __init__(self, inner, name):
        super().__init__(inner.param_groups, {})
        setattr(self, name, inner)


@pytest.mark.parametrize("name", ["optimizer", "base_optimizer"])
def test_an_optimizer_around_another_is_refused(name):
    model = get_peft_model(MLP(), OIALRConfig())
    inner = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"Lookahead holds another optimizer, AdamW.* train with AdamW alone"):
        OIALRUpdater(model, Lookahead(inner, name))
    OIALRUpdater(model, MuonAdamW.from_model(model))


def test_an_adapter_that_is_frozen_in_part_is_refused_with_the_way_out():
    model, optimizer, _ = start()
    first = next(p for p in model.parameters() if p.requires_grad)
    first.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1 of \d layers of the OIALR adapter are frozen.*exclude_modules"):
        OIALRUpdater(model, optimizer)


def test_two_updaters_of_one_model_are_refused_and_one_after_the_other_is_not():
    model, optimizer, first = start()
    train(model, optimizer, first, range(4))
    second = OIALRUpdater(model, optimizer, total_steps=100)
    train(model, optimizer, second, range(2))  # a second stage; the first one still lives
    model(batch(0)).square().mean().backward()
    optimizer.step()
    first.step()
    with pytest.raises(RuntimeError, match="Two OIALRUpdaters make the updates of one model"):
        second.step()


def test_a_schedule_may_be_driven_by_hand_by_one_updater_after_another():
    model, optimizer, first = start()
    with pytest.warns(OIALRWarning, match="no step yet"):
        first.step()
    second = OIALRUpdater(model, optimizer, total_steps=100)
    with pytest.warns(OIALRWarning, match="no step yet"):
        second.step()
    train(model, optimizer, second, range(2))


def test_a_run_that_is_longer_than_was_said_is_told_of_once():
    model, optimizer, _ = start()
    updater = OIALRUpdater(model, optimizer, total_steps=6)
    train(model, optimizer, updater, range(6))
    with pytest.warns(OIALRWarning, match="after the `total_steps=6`") as caught:
        train(model, optimizer, updater, range(3))
    assert sum("total_steps=6" in str(w.message) for w in caught) == 1


def test_updaters_of_two_adapters_in_turn_made_anew_are_no_conflict():
    settings = {"r": 4, "update_interval": 3, "layer_step": 1.0}
    torch.manual_seed(0)
    model = get_peft_model(MLP(), OIALRConfig(**settings))
    model.add_adapter("b", OIALRConfig(**settings))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    kept = []
    for _ in range(2):
        updaters = {}
        for name in ("default", "b"):
            model.set_adapter(name)
            updaters[name] = OIALRUpdater(model, optimizer, total_steps=100)
        kept.append(updaters)  # as garbage that was not collected yet
        for name in ("default", "b", "default"):
            model.set_adapter(name)
            model(batch(0)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            for updater in updaters.values():
                updater.step()


def test_a_callback_can_be_pickled_before_it_trains():
    assert pickle.loads(pickle.dumps(OIALRCallback(trace="x"))).trace == "x"


class _FabricModule(nn.Module):
    """As `fabric.setup` of Lightning wraps a model: the state dict of the one inside, modules with other names."""

    def __init__(self, inner):
        super().__init__()
        self._forward_module = inner
        self._original_module = inner

    @property
    def module(self):
        return self._original_module

    def state_dict(self, *args, **kwargs):
        return self.module.state_dict(*args, **kwargs)

    def forward(self, *args):
        return self._forward_module(*args)


def test_a_model_that_fabric_wrapped_is_the_model_inside():
    found = []
    for wrap in (lambda model: model, _FabricModule):
        torch.manual_seed(0)
        model = get_peft_model(MLP(), OIALRConfig(target_size=0.9, train_rest=True))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        updater = OIALRUpdater(wrap(model), optimizer, total_steps=12)
        train(model, optimizer, updater, range(12))
        found.append((model.base_model.ranks(), updater.summary()))
    assert found[0] == found[1]


def test_the_callback_trains_the_body_of_what_is_no_module_itself(tmp_path):
    """setfit's trainer hands its callbacks a SetFitModel, which holds the module as `model_body`."""
    model, optimizer, _ = start()
    callback, state = OIALRCallback(), transformers.TrainerState(max_steps=6)
    holder, arguments = SimpleNamespace(model_body=model), transformers.TrainingArguments(str(tmp_path))
    callback.on_train_begin(arguments, state, None, model=holder, optimizer=optimizer)
    assert set(callback.updater.weights) == set(model.base_model.ranks())
    with pytest.raises(TypeError, match="trains a SimpleNamespace, which is no torch module"):
        callback.on_train_begin(arguments, state, None, model=SimpleNamespace(), optimizer=optimizer)
    with pytest.raises(TypeError, match="Save its `model_body`"):
        save_compressed(holder, tmp_path)
