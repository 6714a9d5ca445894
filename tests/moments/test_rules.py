"""How each kind of state follows a rotation: exactly where it is linear, by its expectation where it is squared."""

import pytest
import torch
from peft import get_peft_model

from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.linalg import Transport, rotate
from oialr_peft.moments import MomentCarrier
from oialr_peft.moments.rules import RULES
from tests.conftest import MLP
from tests.moments.test_carrier import OPTIMIZERS, X, Y, steps


def test_second_moment_is_the_expectation_for_independent_gradients():
    torch.manual_seed(0)
    spread = torch.rand(6, 5).double() + 0.1
    rotation = rotate(torch.randn(6, 5).double())
    gradients = spread.sqrt() * torch.randn(200_000, 6, 5).double()
    measured = (rotation.left.T @ gradients @ rotation.right).square().mean(0)
    parameter = torch.nn.Parameter(torch.zeros(6, 5).double())
    optimizer = torch.optim.Adam([parameter])
    optimizer.state[parameter] = {
        "step": torch.tensor(1.0),
        "exp_avg": torch.zeros(6, 5).double(),
        "exp_avg_sq": spread,
    }
    MomentCarrier(optimizer, "rotate").transport(parameter, rotation.transport, was_dense=True)
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg_sq"], measured, rtol=0.02, atol=0.0)


def test_adafactor_rows_and_columns_equal_those_of_the_rotated_estimate():
    rotation = rotate(torch.randn(6, 5).double()).cut(4)
    row, col = torch.rand(6, 1).double(), torch.rand(1, 5).double()
    col *= row.mean() / col.mean()
    rotated = rotation.left.square().T @ (row @ col / row.mean()) @ rotation.right.square()
    parameter = torch.nn.Parameter(torch.zeros(6, 5).double())
    optimizer = torch.optim.Adafactor([parameter])
    optimizer.state[parameter] = {"step": torch.tensor(1.0), "row_var": row, "col_var": col}
    MomentCarrier(optimizer, "rotate").transport(parameter, rotation.transport, was_dense=True)
    state = optimizer.state[parameter]
    torch.testing.assert_close(state["row_var"], rotated.mean(1, keepdim=True))
    torch.testing.assert_close(state["col_var"], rotated.mean(0, keepdim=True))


LINEAR = {  # entries that are linear in the gradient, or steps to be taken
    "Adam": (OPTIMIZERS["AdamW"], ["exp_avg"]),
    "NAdam": (OPTIMIZERS["NAdam"], ["exp_avg"]),
    "RAdam": (OPTIMIZERS["RAdam"], ["exp_avg"]),
    "Adamax": (OPTIMIZERS["Adamax"], ["exp_avg"]),
    "Lion": (OPTIMIZERS["Lion"], ["exp_avg"]),
    "RMSprop": (OPTIMIZERS["RMSprop centred"], ["momentum_buffer", "grad_avg"]),
    **(
        {"Muon": (lambda p: torch.optim.Muon(p, lr=1e-2), ["momentum_buffer"])} if hasattr(torch.optim, "Muon") else {}
    ),
}


@pytest.mark.parametrize(("make", "keys"), LINEAR.values(), ids=LINEAR)
def test_what_is_linear_in_the_gradient_is_the_same_matrix_after_a_rotation(make, keys):
    config = OIALRConfig(update_interval=4, layer_step=1.0, sigma_cutoff=0.0)
    model = get_peft_model(MLP().double(), config)
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    updater, moved = OIALRUpdater(model, optimizer), 0.0

    def full(key):
        found = []
        for weight in updater.weights.values():
            u, _, vh = weight.factors
            found.append(u @ optimizer.state[weight.core][key] @ vh)
        return found

    for step in range(4):
        torch.nn.functional.cross_entropy(model(X.double()), Y).backward()
        optimizer.step()
        if step == 3:
            before = {key: full(key) for key in keys}
            vh = list(updater.weights.values())[1].factors.right.clone()
        updater.step()
        optimizer.zero_grad()
    moved = float((list(updater.weights.values())[1].factors.right - vh).norm())
    assert moved > 0.1
    for key in keys:
        for old, new in zip(before[key], full(key), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-12)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_a_rotation_is_invisible_to_muon():
    """orth(leftᵀ M right) = leftᵀ orth(M) right. torch's Newton-Schulz steps run in bfloat16, hence the tolerance."""
    runs = []
    for interval in (1000, 5):
        torch.manual_seed(0)
        model = get_peft_model(MLP(), OIALRConfig(update_interval=interval, layer_step=1.0, sigma_cutoff=0.0))
        optimizer = torch.optim.Muon([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
        runs.append(torch.tensor(steps(model, optimizer, 20, OIALRUpdater(model, optimizer))))
    assert runs[0][-1] < 0.8 * runs[0][0]
    torch.testing.assert_close(*runs, rtol=5e-3, atol=0.0)  # a reset momentum is off by 4e-2


def rotated(optimizer, **state):
    """The state of a 6 × 5 matrix after a rotation, and that rotation."""
    rotation = rotate(torch.randn(6, 5).double())
    parameter = next(p for group in optimizer.param_groups for p in group["params"])
    optimizer.state[parameter] = state
    MomentCarrier(optimizer, "rotate").transport(parameter, rotation.transport, was_dense=True)
    return optimizer.state[parameter], rotation


def test_the_variance_of_centred_rmsprop_stays_one():
    """Its mean is subtracted squared and a root is taken: squares spread out by themselves gave NaN."""
    gradients = torch.randn(6, 5).double() + 0.01 * torch.randn(100, 6, 5).double()
    optimizer = torch.optim.RMSprop([torch.nn.Parameter(torch.zeros(6, 5).double())], centered=True)
    state, rotation = rotated(optimizer, square_avg=gradients.square().mean(0), grad_avg=gradients.mean(0))
    variance = state["square_avg"] - state["grad_avg"].square()
    true = (rotation.left.T @ gradients @ rotation.right).var(0, unbiased=False)
    assert bool((variance > 0).all())
    assert float((variance / true).log().abs().max()) < 0.7


def test_the_largest_gradient_of_adamax_keeps_its_scale():
    spread, largest, true = torch.rand(6, 5).double().pow(3) + 0.01, torch.zeros(6, 5).double(), torch.zeros(5, 5)
    gradients = spread * torch.randn(500, 6, 5).double()
    for gradient in gradients:
        largest = torch.maximum(0.99 * largest, gradient.abs())
    optimizer = torch.optim.Adamax([torch.nn.Parameter(torch.zeros(6, 5).double())])
    state, rotation = rotated(optimizer, exp_inf=largest)
    for gradient in gradients:
        true = torch.maximum(0.99 * true, (rotation.left.T @ gradient @ rotation.right).abs())
    assert float((state["exp_inf"] / true).log().abs().max()) < 0.7  # |left|ᵀ largest |right| is off by 1.3 to 2.2


def test_one_square_that_overflowed_does_not_halt_its_neighbours():
    value = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    value[2, 3] = torch.inf
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
    moved = RULES["second"](value, Transport(q, q), {})
    assert moved.isfinite().all()
    assert (moved > 0).all()
    assert moved.sum() == pytest.approx(float(value[value.isfinite()].sum() + value[value.isfinite()].max()))


def test_a_rotation_is_invisible_to_momentum():
    """SGD with momentum is equivariant, so with the first moment carried exactly nothing at all may change."""
    sgd = []
    for interval in (1000, 5):
        torch.manual_seed(0)
        config = OIALRConfig(update_interval=interval, layer_step=1.0, sigma_cutoff=0.0)
        model = get_peft_model(MLP().double(), config)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        updater, losses = OIALRUpdater(model, optimizer), []
        for _ in range(30):
            loss = torch.nn.functional.cross_entropy(model(X.double()), Y)
            loss.backward()
            optimizer.step()
            updater.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        sgd.append(losses)
    torch.testing.assert_close(*map(torch.tensor, sgd), rtol=1e-9, atol=1e-12)
