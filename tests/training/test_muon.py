"""MuonAdamW: the parts it is made of, as one optimizer."""

import copy
import warnings

import pytest
import torch
from peft import get_peft_model
from torch import nn

from oialr_peft import MuonAdamW, OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.linalg import orthogonalise
from tests.conftest import tiny_llama


def test_orthogonalise_commutes_with_rotations():
    matrix = torch.randn(3, 12, 8, dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in (12, 8))
    rotated = orthogonalise(left.mT @ matrix @ right)
    torch.testing.assert_close(rotated, left.mT @ orthogonalise(matrix) @ right)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(16, 16, dtype=torch.float64)))
    assert values.max() < 1.3
    assert orthogonalise(torch.zeros(4, 4)).abs().max() == 0


def test_it_takes_the_steps_of_its_two_parts():
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))
    others = [nn.Parameter(p.detach().clone()) for p in (matrix, vector)]
    both = MuonAdamW([matrix], [vector], muon_lr=0.1, lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW([others[1]], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    muon = pytest.importorskip("torch.optim._muon").Muon([others[0]], lr=0.1, weight_decay=0.1)
    for step in range(4):
        for parameter, other in zip((matrix, vector), others, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            other.grad = parameter.grad.clone()
        for optimizer in (both, adamw, muon):
            optimizer.step()
    assert torch.equal(vector, others[1])
    assert (matrix - others[0]).norm() < 0.02 * matrix.norm()  # torch's own runs in bfloat16


def test_from_model_sorts_the_parameters():
    model = tiny_llama()
    optimizer = MuonAdamW.from_model(model, muon_lr=0.1, lr=0.01, weight_decay=0.2)
    kinds = {id(p): (g["kind"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(kinds) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        apart = "embed" in name or "lm_head" in name
        expected = ("adamw", 0.2) if apart else ("muon", 0.2) if parameter.ndim == 2 else ("adamw", 0.0)
        assert kinds[id(parameter)] == expected, name
    adapted = get_peft_model(tiny_llama(), OIALRConfig())
    groups = MuonAdamW.from_model(adapted).param_groups
    assert [g["kind"] for g in groups] == ["muon"]
    assert all(p.requires_grad for g in groups for p in g["params"])


def test_convolutions_and_a_saved_head_go_to_adamw():
    def net():
        return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2))

    for fields in ({}, {"delay": 3, "train_rest": True}):
        optimizer = MuonAdamW.from_model(get_peft_model(net(), OIALRConfig(target_modules=["0", "1"], **fields)))
        assert {group["kind"] for group in optimizer.param_groups} == {"adamw"}
    model = get_peft_model(tiny_llama(), OIALRConfig(modules_to_save=["lm_head"]))
    kinds = {id(p): group["kind"] for group in MuonAdamW.from_model(model).param_groups for p in group["params"]}
    assert [kinds[id(p)] for name, p in model.named_parameters() if "lm_head" in name and p.requires_grad] == ["adamw"]


def test_every_update_that_is_made_counts_for_both_parts():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 8))
    model = get_peft_model(net, OIALRConfig(target_modules=["0", "2"], update_interval=1))
    optimizer = MuonAdamW.from_model(model)
    updater = OIALRUpdater(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        for _ in range(4):
            model(torch.randn(4, 4, 3, 3)).square().mean().backward()
            optimizer.step()
            updater.step()


def test_resume_is_exact():
    def run(steps, parameters, optimizer, start=0):
        for step in range(start, steps):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    def make():
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))]
        return parameters, MuonAdamW(parameters[:1], parameters[1:])

    whole, optimizer = make()
    run(6, whole, optimizer)
    half, first = make()
    run(3, half, first)
    state, values = copy.deepcopy(first.state_dict()), [p.detach().clone() for p in half]
    other, second = make()
    for parameter, value in zip(other, values, strict=True):
        parameter.data = value
    second.load_state_dict(state)
    run(6, other, second, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))


def test_schedulers_and_groups_reach_both_parts():
    parameters = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
    optimizer = MuonAdamW(parameters[:1], parameters[1:])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler.step()
    assert all(bool((p == 1).all()) for p in parameters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"muon": [nn.Parameter(torch.ones(3))]}, r"matrices only; got a parameter of shape \(3,\)"),
        ({"muon": [nn.Parameter(torch.ones(3, 3))], "muon_lr": -1}, "`muon_lr` must be at least 0; got -1"),
        ({"muon": [nn.Parameter(torch.ones(3, 3))], "momentum": 1.5}, r"`momentum` must be in \[0, 1\); got 1.5"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MuonAdamW(**arguments)


def test_a_square_layer_at_full_rank_trains_as_its_dense_twin():
    """200 steps with 5 rotations in float64: the spectral step sees no basis."""

    def train(model, optimizer, after_step=lambda: None):
        losses = []
        for step in range(200):
            x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            loss = (model(x) - x.roll(1, dims=1).tanh()).square().mean()
            loss.backward()
            optimizer.step()
            after_step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return torch.tensor(losses)

    def layers():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(12, 12, bias=False, dtype=torch.float64) for _ in range(3)))

    dense, adapted = layers(), get_peft_model(layers(), OIALRConfig(update_interval=40, layer_step=1, sigma_cutoff=0))
    optimizer = MuonAdamW.from_model(adapted, muon_lr=0.01)
    updater = OIALRUpdater(adapted, optimizer)
    reports = []
    expected = train(dense, MuonAdamW.from_model(dense, muon_lr=0.01))
    found = train(adapted, optimizer, lambda: reports.append(updater.step()))
    assert sum(report is not None for report in reports) == 5
    assert expected[-1] < 0.5 * expected[0]
    assert float(((found - expected).abs() / expected).max()) < 1e-6


def test_groups_that_come_later_take_what_they_do_not_say_and_copies_step():
    matrix, vector, late, bias = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 4), (4,), (4, 6), (6,)))
    optimizer = MuonAdamW([matrix], [vector], muon_lr=0.03, lr=0.004, weight_decay=0.2)
    optimizer.add_param_group({"params": [late], "kind": "muon", "lr": 0.1})
    optimizer.add_param_group({"params": bias, "kind": "adamw"})
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.004, 0.1, 0.004]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2}
    with pytest.raises(ValueError, match=r"must be one of \['adamw', 'muon'\], .* got None"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})
    with pytest.raises(ValueError, match="Muon takes matrices only"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "kind": "muon"})
    copied = copy.deepcopy(optimizer)
    for one in (optimizer, copied):
        parameters = [p for group in one.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        one.step()
    for group, other in zip(optimizer.param_groups, copied.param_groups, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(group["params"], other["params"], strict=True))
