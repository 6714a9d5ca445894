"""Updates follow the optimizer's steps, wherever and however often `updater.step()` is called; no gradient is lost."""

import gc
import warnings

import pytest
import torch
from peft import get_peft_model

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning
from tests.conftest import MLP


SEEDED = torch.Generator().manual_seed(5)
X, Y = torch.randn(64, 12, generator=SEEDED).double(), torch.randint(0, 4, (64,), generator=SEEDED)
PLACES = [  # of `updater.step()` in a loop
    "after",
    "before",
    "every micro-batch",
    "after zero_grad",
]


def train(place: str, update_interval: int = 3):
    """Nine steps of two micro-batches in float64 with the updater called in one of PLACES; the model and updater."""
    torch.manual_seed(0)
    config = OIALRConfig(update_interval=update_interval, layer_step=1.0, sigma_cutoff=0.0, train_rest=True)
    model = get_peft_model(MLP().double(), config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    updater = OIALRUpdater(model, optimizer)
    for _ in range(9):
        for x, y in zip(X.chunk(2), Y.chunk(2), strict=True):
            torch.nn.functional.cross_entropy(model(x), y).backward()
            if place == "every micro-batch":
                updater.step()
        if place == "before":
            updater.step()
        optimizer.step()
        if place == "after":
            updater.step()
        optimizer.zero_grad()
        if place == "after zero_grad":
            updater.step()
    return model, updater


def weights(model):
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize("place", PLACES)
def test_a_rotation_is_invisible_wherever_the_updater_is_called(place):
    """Momentum is equivariant, so a run whose gradients all arrive equals one that never rotates."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        model, updater = train(place)
    assert updater.steps == (9 if place.startswith("after") else 8)  # nobody asks about the last one
    expected, found = weights(train("after", update_interval=1000)[0]), weights(model)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10, msg=name)


def test_calls_inside_an_accumulation_window_make_no_update():
    model = get_peft_model(MLP(), OIALRConfig(update_interval=2))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    updater, reports = OIALRUpdater(model, optimizer), []
    for micro_batch in range(1, 17):
        model(torch.randn(4, 12)).sum().backward()
        if micro_batch % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
        reports.append(updater.step())
    assert [report.step for report in reports if report] == [2, 4]
    assert [index for index, report in enumerate(reports, 1) if report] == [8, 16]


@pytest.mark.parametrize("bases", ["frozen", "longer"])
@pytest.mark.parametrize("delay", [0, 1])
def test_a_gradient_that_waits_for_its_step_moves_with_the_bases(delay, bases):
    """Changed by gradient descent before or after the update, the weight is the same."""
    torch.manual_seed(0)
    fields = {"delay": delay, "update_interval": 1, "layer_step": 1.0, "sigma_cutoff": 0.0, "bases": bases}
    model = get_peft_model(MLP().double(), OIALRConfig(train_rest=True, **fields))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    updater = OIALRUpdater(model, optimizer)
    optimizer.step()
    torch.nn.functional.cross_entropy(model(X), Y).backward()
    weight = updater.weights["middle"]  # square, so nothing of its gradient lies outside the bases

    def gradient():
        return weight.factors._replace(core=weight.core.grad).compose() if weight.is_factored else weight.core.grad

    before = gradient()
    assert updater.step() is not None
    torch.testing.assert_close(gradient(), before, rtol=1e-6, atol=1e-12)


def test_steps_that_nobody_asked_about_count_and_a_passed_update_is_made():
    model = get_peft_model(MLP(), OIALRConfig(update_interval=4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    updater = OIALRUpdater(model, optimizer)
    for _ in range(10):
        optimizer.step()
    report = updater.step()
    assert (report.step, report.update_number) == (10, 2)
    assert updater.step() is None


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cleared", [False, True])  # gradients, before the updater is asked
def test_a_step_that_the_gradient_scaler_skipped_is_none(fused, cleared):
    """Also the very first one, and where the optimizer itself leaves out the step, as fused ones do."""
    model = get_peft_model(MLP(), OIALRConfig(update_interval=2))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=fused)
    updater, scaler, reports = OIALRUpdater(model, optimizer), torch.amp.GradScaler("cpu", init_scale=1.0), []
    for scale in (float("inf"), 1.0, float("inf"), 1.0):
        scaler.scale(model(torch.randn(4, 12)).sum() * scale).backward()
        scaler.step(optimizer)
        scaler.update()
        if cleared:
            optimizer.zero_grad()
        reports.append(updater.step())
        optimizer.zero_grad()
    assert [report is not None for report in reports] == [False, False, False, True]
    assert updater.steps == 2


def test_calls_without_any_training_count_and_say_so_once():
    model = get_peft_model(MLP(), OIALRConfig(update_interval=2))
    updater = OIALRUpdater(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    with pytest.warns(OIALRWarning, match="its AdamW has taken no step yet and there are no gradients") as caught:
        assert [updater.step() is not None for _ in range(4)] == [False, True, False, True]
    assert len(caught) == 1


def test_an_updater_with_another_optimizer_than_the_one_that_trains_is_noticed():
    model = get_peft_model(MLP(), OIALRConfig(update_interval=2))
    parameters = [p for p in model.parameters() if p.requires_grad]
    updater, trains = OIALRUpdater(model, torch.optim.AdamW(parameters)), torch.optim.AdamW(parameters)
    with pytest.warns(OIALRWarning, match="3 optimizer steps were taken, .* of the optimizer that trains the adapter"):
        for _ in range(4):
            model(torch.randn(4, 12)).sum().backward()
            trains.step()
            assert updater.step() is None


def test_an_optimizer_that_calls_its_parents_step_takes_one_step():
    class Child(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])  # from here on torch's hooks fire for both classes
    model = get_peft_model(MLP(), OIALRConfig(update_interval=2))
    optimizer = Child([p for p in model.parameters() if p.requires_grad], lr=0.1)
    updater = OIALRUpdater(model, optimizer)
    for _ in range(3):
        optimizer.step()
        updater.step()
    assert updater.steps == 3


def test_updaters_that_come_and_go_leave_one_hook():
    """Removing hooks from a finalizer ended the step during which garbage was collected."""
    model = get_peft_model(MLP(), OIALRConfig())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for _ in range(3):
        updater = OIALRUpdater(model, optimizer)
        optimizer.step()
        assert updater.step() is None
        assert updater.steps == 1
    assert len(optimizer._optimizer_step_post_hooks) == 1
    optimizer.register_step_post_hook(lambda *_: (model.base_model.delete_adapter("default"), gc.collect()))
    del updater
    optimizer.step()


@pytest.mark.parametrize("raised", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_a_step_that_raised_costs_itself_alone(raised):
    """The next one is counted, and scaled."""
    torch.manual_seed(0)
    model = get_peft_model(MLP().double(), OIALRConfig(r=3, update_interval=4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, foreach=False)
    updater, moved = OIALRUpdater(model, optimizer), []
    core, whole = updater.weights["first"].core, optimizer._init_group

    def fail(*_):
        raise raised("once")

    for step in range(6):
        torch.nn.functional.cross_entropy(model(X), Y).backward()
        before = core.detach().clone()
        optimizer._init_group = fail if step == 2 else whole
        try:
            optimizer.step()
        except raised:
            optimizer.zero_grad()
            continue
        moved.append(float((core.detach() - before).abs().max()))
        updater.step()
        optimizer.zero_grad()
    assert updater.steps == 5
    assert min(moved) > 0.5 * max(moved)


class Child(torch.optim.AdamW):
    """Calls its parent's step, around which torch calls hooks as well."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_step_within_a_step_is_one():
    model = get_peft_model(MLP().double(), OIALRConfig())
    optimizer = Child([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    updater = OIALRUpdater(model, optimizer)
    for _ in range(3):
        torch.nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    updater.step()
    assert updater.steps == 3


class Outer(torch.optim.Optimizer):
    """SAM in short: it keeps nothing of its own from one step to the next, and steps by another one."""

    def __init__(self, base):
        self.base_optimizer = base
        super().__init__(base.param_groups, {})

    def step(self, closure=None):
        self.base_optimizer.step()


def test_an_outer_optimizer_whose_inner_one_raises_costs_no_other_step():
    model = get_peft_model(MLP().double(), OIALRConfig(update_interval=50))
    base = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, foreach=False)
    outer, updater, good = Outer(base), OIALRUpdater(model, base), 0
    whole = base._init_group

    def fail(*_):
        raise torch.OutOfMemoryError("once")

    for step in range(20):
        torch.nn.functional.cross_entropy(model(X), Y).backward()
        base._init_group = fail if step % 3 == 2 else whole
        try:
            outer.step()
        except torch.OutOfMemoryError:
            continue
        good += 1
        updater.step()
    assert updater.steps == good == 14
