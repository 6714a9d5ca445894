"""Sigma's step, scaled around any optimizer's own."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.policy.step_size import RAMP, Ramp, StepSize
from oialr_peft.training.muon import MuonAdamW
from oialr_peft.training.optimizer_steps import OptimizerSteps
from oialr_peft.training.step_scale import StepScale


WEIGHT, CORE = (32, 8), (4, 4)


def scaled(optimizer, parameter, lr_scale="match", weight=WEIGHT):
    held = SimpleNamespace(core=parameter, matrix_shape=weight, core_shape=tuple(parameter.shape), is_factored=True)
    return StepScale(optimizer, {"layer": held}, StepSize(lr_scale))


def change(make, lr_scale, decay=0.0):
    """How far one step moves a (4, 4) parameter, and the parameter before it."""
    parameter = nn.Parameter(torch.randn(CORE, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    optimizer = make([parameter], decay)
    scale = scaled(optimizer, parameter, lr_scale)
    before = parameter.detach().clone()
    parameter.grad = torch.randn(CORE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizer.step()
    return parameter.detach() - before, before, scale


ENTRYWISE = {
    "AdamW": lambda p, wd: torch.optim.AdamW(p, lr=1e-2, weight_decay=wd),
    "Adam": lambda p, wd: torch.optim.Adam(p, lr=1e-2, weight_decay=wd),
    "NAdam": lambda p, wd: torch.optim.NAdam(p, lr=1e-2, weight_decay=wd, decoupled_weight_decay=True),
    "RAdam": lambda p, wd: torch.optim.RAdam(p, lr=1e-2, weight_decay=wd, decoupled_weight_decay=True),
}


@pytest.mark.parametrize("name", ENTRYWISE)
def test_the_step_is_multiplied_and_decoupled_decay_is_not(name):
    plain, before, _ = change(ENTRYWISE[name], "none")
    with_scale, _, scale = change(ENTRYWISE[name], "match")
    assert scale.scales() == {"layer": 4.0}  # sqrt(32 * 8) / 4
    torch.testing.assert_close(with_scale, 4 * plain)
    if name != "Adam":  # its decay is part of the gradient
        decayed, _, _ = change(ENTRYWISE[name], "match", decay=0.1)
        torch.testing.assert_close(decayed, 4 * plain - 1e-3 * before)


class Lion(torch.optim.Optimizer):
    """What third-party Lions do with their decay, by the names that they give it."""

    def __init__(self, parameters, lr, weight_decay, divided=False, **group):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, **group})
        self.decoupled_wd, self._init_lr = divided, lr  # lion_pytorch's

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for parameter in group["params"]:
                if group.get("weight_decouple", True):  # pytorch_optimizer's, with the next one
                    whole = group.get("fixed_decay") or self.decoupled_wd
                    parameter.mul_(1 - decay * (1 if whole else rate))
                    parameter.sub_(rate * parameter.grad.sign())
                else:
                    parameter.sub_(rate * (parameter.grad + decay * parameter).sign())


@pytest.mark.parametrize(
    ("flags", "share"),
    [({}, 1e-3), ({"fixed_decay": True}, 0.1), ({"divided": True}, 0.1), ({"weight_decouple": False}, None)],
)
def test_the_decay_of_other_libraries_is_not_multiplied(flags, share):
    def make(parameters, decay):
        return Lion(parameters, 1e-2, decay, **flags)

    plain, before, _ = change(make, "none", decay=0.1)
    scaled_change, _, _ = change(make, "match", decay=0.1)
    decayed = 0 if share is None else -share * before
    torch.testing.assert_close(scaled_change, 4 * (plain - decayed) + decayed)


def test_muon_has_its_own_rule():
    def make(parameters, decay):
        return MuonAdamW(parameters, muon_lr=1e-2, weight_decay=decay)

    plain, before, _ = change(make, "none")
    with_scale, _, scale = change(make, "match", decay=0.1)
    assert scale.scales() == {"layer": 2.0}  # sqrt(32 / 8)
    torch.testing.assert_close(with_scale, 2 * plain - 1e-3 * before)


@pytest.mark.parametrize(
    "make",
    [lambda p, wd: torch.optim.SGD(p, lr=1e-2, momentum=0.9), lambda p, wd: torch.optim.Adafactor(p, lr=1e-2)],
    ids=["SGD", "Adafactor"],
)
def test_steps_that_fit_every_rank_are_untouched_and_not_counted_twice(make):
    plain, _, _ = change(make, "none")
    matched, _, _ = change(make, "match")
    assert torch.equal(plain, matched)
    with pytest.raises(ValueError, match=r"`lr_scale=2.0` with (SGD|Adafactor).*counted twice"):
        change(make, 2.0)


def test_an_unknown_optimizer_is_named():
    class Odd(torch.optim.Optimizer):
        def __init__(self, parameters, lr):
            super().__init__(parameters, {"lr": lr})

        def step(self, closure=None):
            pass

    parameter = nn.Parameter(torch.zeros(CORE))
    with pytest.warns(OIALRWarning, match="does not know how the step of .*Odd depends"):
        scaled(Odd([parameter], 1e-2), parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled(Odd([parameter], 1e-2), parameter, "none")
        scaled(Odd([parameter], 1e-2), parameter, 2.0)


def test_a_new_scale_is_ramped_in_and_survives_a_resume():
    parameter = nn.Parameter(torch.zeros(CORE))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2)

    held = SimpleNamespace(core=parameter, matrix_shape=WEIGHT, core_shape=CORE, is_factored=True)

    def make():
        return StepScale(optimizer, {"layer": held}, StepSize("match"))

    scale = make()
    optimizer.step()  # without a gradient: nothing moves
    held.core_shape = (2, 2)  # as after a cut
    scale.refresh()
    assert scale.scales()["layer"] == 4
    parameter.grad = torch.ones(CORE)
    for _ in range(RAMP // 2):
        optimizer.step()
    assert scale.scales()["layer"] == pytest.approx(6)
    state = copy.deepcopy(scale.state_dict())
    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.scales() == scale.scales()
    for _ in range(RAMP):
        optimizer.step()
    assert resumed.scales()["layer"] == 8
    assert resumed.state_dict() == {}


def test_a_ramp_that_is_over_is_at_its_target():
    numbers = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    assert all(Ramp(1 / start, 10 * target, RAMP).value == 10 * target for start, target in numbers)


def test_a_number_scales_square_layers_from_the_start_and_dense_ones_not():
    model = get_peft_model(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 24)), OIALRConfig(lr_scale=3.0))
    scale = OIALRUpdater(model, torch.optim.AdamW(model.parameters()))._step_scale
    assert set(scale.scales().values()) == {3.0}
    model = get_peft_model(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 24)), OIALRConfig(lr_scale=3.0, delay=5))
    scale = OIALRUpdater(model, torch.optim.AdamW(model.parameters()))._step_scale
    assert set(scale.scales().values()) == {1.0}


def test_adafactor_as_the_trainer_makes_it_steps_entry_by_entry():
    for relative, expected in ((False, 4.0), (True, 1.0)):  # sqrt(32 * 8) / 4
        parameter = nn.Parameter(torch.randn(CORE))
        settings = {"lr": 1e-2, "scale_parameter": relative, "relative_step": False, "weight_decay": 0.1}
        scale = scaled(transformers.Adafactor([parameter], **settings), parameter)
        assert scale.scales()["layer"] == expected
    before = parameter.detach().clone()
    optimizer = transformers.Adafactor([parameter], lr=1e-2, scale_parameter=False, relative_step=False)
    scale = scaled(optimizer, parameter)
    parameter.grad = torch.ones(CORE)
    optimizer.step()
    torch.testing.assert_close(parameter.detach() - before, torch.full(CORE, -4e-2), rtol=1e-3, atol=1e-6)


def test_ranks_that_are_loaded_after_it_was_made_count():
    parameter = nn.Parameter(torch.zeros(CORE))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2)
    held = SimpleNamespace(core=parameter, matrix_shape=WEIGHT, core_shape=WEIGHT, is_factored=True)
    scale = StepScale(optimizer, {"layer": held}, StepSize("match"))
    held.core_shape = (2, 2)
    assert scale.scales()["layer"] == 8


def test_a_skipped_step_moves_nothing_and_a_discarded_scale_lets_go():
    parameter = nn.Parameter(torch.randn(CORE))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.1)
    scale = scaled(optimizer, parameter)
    before = parameter.detach().clone()
    optimizer.step()  # no gradient
    assert torch.equal(parameter, before)
    del scale
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    plain = torch.optim.AdamW([expected := nn.Parameter(before)], lr=1e-2, weight_decay=0.1)
    expected.grad = torch.ones_like(before)
    plain.step()
    assert torch.equal(parameter, expected)


def test_the_scale_of_a_later_run_takes_over_and_a_parents_step_counts_once():
    class Child(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    parameter, plain = (nn.Parameter(torch.ones(CORE)) for _ in range(2))
    optimizer, other = Child([parameter], lr=1e-2, weight_decay=0), torch.optim.AdamW([plain], lr=1e-2, weight_decay=0)
    earlier, later = scaled(optimizer, parameter), scaled(optimizer, parameter)
    for p, o in ((parameter, optimizer), (plain, other)):
        p.grad = torch.ones(CORE)
        o.step()
    torch.testing.assert_close(parameter - 1, 4 * (plain - 1))
    later._layers["layer"].core_shape = (2, 2)
    later.refresh()
    optimizer.step()
    assert later.state_dict()["layer"][1] == 1
    assert earlier.scales() == {"layer": 4.0}


def test_a_step_that_raised_does_not_end_scaling():
    parameter = nn.Parameter(torch.ones(CORE))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0)
    _scale, steps = scaled(optimizer, parameter), OptimizerSteps(optimizer, [parameter])

    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        optimizer.step(fail)
    steps.since_last_asked()  # as the updater asks between steps
    parameter.grad = torch.ones(CORE)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full(CORE, 1 - 4e-2), rtol=1e-4, atol=1e-6)
