"""Optimizer state through factorisation, rotation and cuts, on real optimizers."""

import warnings

import pytest
import torch
import transformers
from peft import get_peft_model

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.linalg import rotate
from oialr_peft.moments import MomentCarrier, inner_optimizer
from tests.conftest import MLP


SEEDED = torch.Generator().manual_seed(5)
X, Y = torch.randn(64, 12, generator=SEEDED), torch.randint(0, 4, (64,), generator=SEEDED)


class Lion(torch.optim.Optimizer):
    """Lion as its authors publish it: the sign of a mixture of gradient and momentum."""

    def __init__(self, params, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    momentum = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                    parameter.sub_(torch.lerp(parameter.grad, momentum, 0.9).sign(), alpha=group["lr"])
                    momentum.lerp_(parameter.grad, 0.01)


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, foreach=False),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, foreach=True),
    "SGD plain": lambda p: torch.optim.SGD(p, lr=1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "RMSprop centred": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "Lion": lambda p: Lion(p, lr=1e-3),
    "torch Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "transformers Adafactor": lambda p: transformers.Adafactor(
        p, lr=1e-2, relative_step=False, scale_parameter=False, beta1=0.9
    ),
}


def steps(model, optimizer, count, updater=None) -> list[float]:
    losses = []
    for _ in range(count):
        loss = torch.nn.functional.cross_entropy(model(X), Y)  # the old graph is alive until the new loss is bound
        loss.backward()
        optimizer.step()
        if updater is not None:
            updater.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def state_tensors(state):
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.ndim}


@pytest.mark.parametrize("policy", ["rotate", "slice", "reset"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_follows_factorisation_and_cuts(make, policy):
    config = OIALRConfig(delay=3, update_interval=3, layer_step=1.0, sigma_cutoff=0.4, train_rest=True, moments=policy)
    model = get_peft_model(MLP(), config)
    rest = [p for n, p in model.named_parameters() if "oialr" not in n and p.requires_grad]
    own = [p for n, p in model.named_parameters() if "oialr" in n]
    optimizer = make([{"params": own, "lr": 5e-3}, {"params": rest}])
    groups = [list(group["params"]) for group in optimizer.param_groups]
    updater = OIALRUpdater(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        losses = steps(model, optimizer, 12, updater)
        assert len(set(model.base_model.ranks().values())) > 1
        for name, weight in updater.weights.items():
            parameter = weight.core
            assert any(parameter is p for p in optimizer.param_groups[0]["params"])
            assert parameter.shape == (weight.rank,) * 2
            for key, value in state_tensors(optimizer.state[parameter]).items():
                assert set(value.shape) <= {weight.rank, 1}, (name, key)
        before = [weight.core.detach().clone() for weight in updater.weights.values()]
        steps(model, optimizer, 1, updater)
    for old, weight in zip(before, updater.weights.values(), strict=True):
        assert not torch.equal(old, weight.core)
    for group, held in zip(optimizer.param_groups, groups, strict=True):
        assert all(a is b for a, b in zip(group["params"], held, strict=True))
    assert optimizer.param_groups[0]["lr"] == 5e-3
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("phase", ["factorisation", "rotation", "cut"])
def test_adam_moments_equal_a_reference_that_rotates_the_full_size_moment(phase):
    """The reference keeps the first moment of W at full size; in the basis of an update it must read uᵀ M v."""
    delay = 4 if phase == "factorisation" else 0
    config = OIALRConfig(
        delay=delay,
        update_interval=4,
        layer_step=1.0,
        sigma_cutoff=0.5 if phase == "cut" else 0.0,
        train_rest=True,
        keep_base_weights=True,
    )
    model = get_peft_model(MLP().double(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater = OIALRUpdater(model, optimizer)
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(X.double()), Y)
        loss.backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(X.double()), Y)
    loss.backward()
    optimizer.step()
    full = {}
    for name, weight in updater.weights.items():
        state = optimizer.state[weight.core]
        if weight.is_factored:
            u, _, vh = weight.factors
            full[name] = (u @ state["exp_avg"] @ vh, state["exp_avg_sq"].clone())
        else:
            full[name] = (state["exp_avg"].clone(), state["exp_avg_sq"].clone())
    updater.step()
    for name, weight in updater.weights.items():
        u, sigma, vh = weight.factors
        state = optimizer.state[weight.core]
        expected = u.T @ full[name][0] @ vh.T
        torch.testing.assert_close(state["exp_avg"], expected, rtol=1e-6, atol=1e-12)
        assert state["exp_avg"].shape == sigma.shape
        assert bool((state["exp_avg_sq"] >= 0).all())
        assert state["exp_avg_sq"].sum() <= full[name][1].sum() * (1 + 1e-9)
        assert float(state["step"]) == 4


def test_slice_takes_the_top_left_block_and_zeros_at_factorisation():
    parameter = torch.nn.Parameter(torch.zeros(6, 6))
    optimizer = torch.optim.Adam([parameter])
    moment = torch.randn(6, 6)
    optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": moment, "exp_avg_sq": moment.square()}
    carrier = MomentCarrier(optimizer, "slice")
    carrier.transport(parameter, rotate(torch.randn(6, 6)).cut(4).transport, was_dense=False)
    assert torch.equal(optimizer.state[parameter]["exp_avg"], moment[:4, :4])
    optimizer.state[parameter]["exp_avg"] = moment
    optimizer.state[parameter]["exp_avg_sq"] = moment.square()
    carrier.transport(parameter, rotate(torch.randn(6, 6)).cut(4).transport, was_dense=True)
    assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], torch.zeros(4, 4))
    assert float(optimizer.state[parameter]["step"]) == 3


def test_an_unknown_optimizer_is_reset_with_one_warning_that_names_it():
    config = OIALRConfig(update_interval=2, layer_step=1.0, sigma_cutoff=0.4, lr_scale="none")
    model = get_peft_model(MLP(), config)
    optimizer = torch.optim.Rprop([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with pytest.warns(OIALRWarning, match="torch.optim.rprop.Rprop") as caught:
        updater = OIALRUpdater(model, optimizer)  # already here: before step 1
        steps(model, optimizer, 9, updater)
    assert len([w for w in caught if w.category is OIALRWarning]) == 1


def test_an_unknown_optimizer_may_train_what_no_update_comes_to():
    model = get_peft_model(MLP(), OIALRConfig(residual=True, r=4, lr_scale="none"))
    optimizer = torch.optim.Rprop([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with warnings.catch_warnings(action="error", category=OIALRWarning):
        steps(model, optimizer, 3, OIALRUpdater(model, optimizer))


def test_an_unknown_entry_of_a_known_optimizer_is_named():
    class Hooked(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state["extra"] = torch.zeros(1)

    model = get_peft_model(MLP(), OIALRConfig(update_interval=2, layer_step=1.0))
    optimizer = Hooked([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with pytest.warns(OIALRWarning, match="state extra of .*Hooked"):
        steps(model, optimizer, 3, OIALRUpdater(model, optimizer))


def test_inner_optimizer_refuses_what_is_none():
    with pytest.raises(TypeError, match="must be a torch optimizer"):
        inner_optimizer(object())


def test_a_pure_rotation_leaves_the_following_losses_alone():
    """20 steps after a rotation without a cut, against the same run without one. Adam's second moment has no exact
    rule, so the runs differ, but by far less than one batch differs from the next."""

    def run(interval):
        torch.manual_seed(0)
        model = get_peft_model(MLP(), OIALRConfig(update_interval=interval, layer_step=1.0, sigma_cutoff=0.0))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        updater, losses = OIALRUpdater(model, optimizer), []
        batches = torch.Generator().manual_seed(1)
        for _ in range(60):
            batch = torch.randint(0, 64, (16,), generator=batches)
            loss = torch.nn.functional.cross_entropy(model(X[batch]), Y[batch])
            loss.backward()
            optimizer.step()
            updater.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return torch.tensor(losses)[40:]

    plain, rotated = run(1000), run(40)
    assert not torch.equal(plain, rotated)
    assert (rotated - plain).abs().mean() < 0.5 * plain.std()


@pytest.mark.parametrize(
    ("optimize", "known"),
    [
        (lambda p: torch.optim.Adam(p, lr=0.0), True),
        (lambda p: torch.optim.RMSprop(p, lr=0.0, alpha=0.0), True),
        (lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9), False),
        (lambda p: torch.optim.Muon(p, lr=0.0), False),
    ],
    ids=["Adam", "RMSprop", "SGD", "Muon"],
)
def test_the_squared_gradient_is_told_where_the_optimizer_keeps_it(optimize, known):
    weight = torch.nn.Parameter(torch.randn(6, 4))
    optimizer = optimize([weight])
    carrier = MomentCarrier(optimizer, "rotate")
    assert carrier.squared_gradient(weight) is None  # before the first step
    weight.sum().backward()
    optimizer.step()
    squares = carrier.squared_gradient(weight)
    assert (squares is not None) == known
    if squares is not None:
        assert torch.equal(squares / squares[0, 0], torch.ones(6, 4))
    assert MomentCarrier(optimizer, "reset").squared_gradient(weight) is None
