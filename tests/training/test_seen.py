"""`activation_aware`: what a layer is taken to a given rank by is what its outputs were in the step before."""

import copy
import gc
import pickle
import warnings

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch._dynamo import eval_frame
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.kinds.experts import ExpertsConv1D, ExpertsLinear
from oialr_peft.layer import adapted_weights
from oialr_peft.linalg import Seen, cut_by_activations, orthonormality_error
from tests.conftest import MLP
from tests.helpers import adapt
from tests.weights.test_forms import KINDS


COUNTS = [7, 0, 13]  # of rows of each expert


def experts(make):
    layer = make(3, 12, 16)
    nn.init.normal_(layer.weight)
    return layer, torch.randn(sum(COUNTS), 12)


CASES = {
    **KINDS,
    "experts": lambda: experts(ExpertsLinear),
    "transposed experts": lambda: experts(ExpertsConv1D),
}


def colour(x, axis):
    """Inputs that vary far more in some channels than in others; places in a table do as they are."""
    if not x.is_floating_point():
        return x
    scale = torch.logspace(0, -2, x.shape[axis])
    return x * scale.reshape(-1, *(1 for _ in x.shape[axis + 1 :])) if axis != -1 else x * scale


def error(kind, aware, **settings):
    """How far an update to half of the rank moves the outputs on the batch before it, relative to their size."""
    torch.manual_seed(0)
    layer, x = CASES[kind]()
    x = colour(x, 1 if "conv" in kind else -1)
    arguments = (COUNTS,) if "experts" in kind else ()
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    model = adapt(layer, delay=2, r=0.5, sigma_cutoff=0.0, activation_aware=aware, **settings)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    updater = OIALRUpdater(model, optimizer, total_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        for _ in range(2):
            before = model(x, *arguments)
            before.square().mean().backward()
            optimizer.step()
            report = updater.step()
    with torch.no_grad():
        found = float((model(x, *arguments) - before).norm() / before.norm())
    if aware:
        assert 0 <= report.dropped["layer"] < 0.1
    return found


@pytest.mark.parametrize("bases", ["frozen", "longer"])
@pytest.mark.parametrize("kind", CASES)
def test_every_kind_keeps_more_of_its_outputs(kind, bases):
    assert error(kind, True, bases=bases) < 0.95 * error(kind, False, bases=bases)


def half_way(**settings):
    """A model of one layer, one step before the update that halves its rank."""
    torch.manual_seed(0)
    model = adapt(nn.Linear(12, 16), delay=2, r=0.5, sigma_cutoff=0.0, **settings)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    updater = OIALRUpdater(model, optimizer)
    step(model, torch.randn(5, 12), optimizer, updater)
    return model, optimizer, updater


def step(model, x, optimizer, updater, micro_batches=1):
    for part in x.chunk(micro_batches):
        model(part).square().mean().backward()
    optimizer.step()
    updater.step()


def weight_of(model):
    (weight,) = adapted_weights(model).values()
    return weight.dense(torch.float64)


def updated(x, micro_batches=1, before=lambda model: None):
    """The weight after the update that halves its rank, on this batch."""
    model, optimizer, updater = half_way()
    before(model)
    step(model, x, optimizer, updater, micro_batches)
    return weight_of(model)


def test_micro_batches_count_together_and_evaluation_does_not():
    def evaluate(model):
        model.eval()
        model(torch.randn(50, 12))
        model.train()

    x = colour(torch.randn(6, 12), -1)
    torch.testing.assert_close(updated(x, 3, before=evaluate), updated(x), rtol=1e-2, atol=5e-4)


def test_training_without_dropout_counts():
    """In evaluation mode, as some train."""
    x = colour(torch.randn(6, 12), -1)
    assert torch.equal(updated(x, before=nn.Module.eval), updated(x))


def test_under_autocast_the_update_is_in_full_precision():
    model, optimizer, updater = half_way()
    with torch.autocast("cpu", torch.bfloat16):
        step(model, torch.randn(6, 12), optimizer, updater)
    left, _, right = adapted_weights(model)["layer"].full_factors
    assert max(orthonormality_error(left), orthonormality_error(right.mT)) < 1e-5


def test_a_compiled_model_is_seen_too():
    x = colour(torch.randn(6, 12), -1)
    model, optimizer, updater = half_way()
    step(model, x, optimizer, updater)
    torch.manual_seed(0)
    compiled = adapt(nn.Linear(12, 16), delay=2, r=0.5, sigma_cutoff=0.0)
    optimizer = torch.optim.SGD([p for p in compiled.parameters() if p.requires_grad], lr=0.0)
    updater = OIALRUpdater(compiled, optimizer)
    run = torch.compile(compiled, backend="eager")
    for batch in (torch.randn(5, 12), x):
        step(run, batch, optimizer, updater)
    torch.testing.assert_close(weight_of(compiled), weight_of(model), rtol=1e-3, atol=1e-5)


def test_a_compiled_model_is_compiled_as_often_as_without_looking():
    def frames(aware):
        torch.manual_seed(0)
        model = adapt(nn.Linear(32, 32), target_size=0.8, train_rest=True, activation_aware=aware, update_interval=3)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        updater = OIALRUpdater(model, optimizer, total_steps=12)
        torch.compiler.reset()
        run, counts = torch.compile(model, backend=(counter := CompileCounter()), fullgraph=True), []
        for _ in range(12):
            step(run, torch.randn(5, 32), optimizer, updater)
            counts.append(counter.frame_count)
        return counts

    assert frames(True)[-1] == frames(False)[-1] > 1
    assert torch.compile(lambda x: x + 1, backend=(last := CompileCounter()))(torch.ones(1)) == 2
    assert last.frame_count == 1  # nothing stays uncompiled


def test_updaters_that_look_at_a_time_leave_nothing_uncompiled_in_whatever_order_they_end():
    gc.collect()  # updaters of other tests
    updaters = []
    for _ in range(2):
        model = adapt(nn.Linear(12, 16), delay=2, r=0.5)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        updaters.append(OIALRUpdater(model, optimizer))
        step(model, torch.randn(5, 12), optimizer, updaters[-1])
    assert eval_frame._stance.stance == "force_eager"
    updaters[0].close()
    assert eval_frame._stance.stance == "force_eager"
    updaters[1].close()
    assert eval_frame._stance.stance == "default"


def test_a_run_that_ends_before_an_update_leaves_the_users_stance():
    gc.collect()
    torch.compiler.set_stance("eager_on_recompile")
    try:
        model = adapt(nn.Linear(12, 16), delay=3, r=0.5)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        updater = OIALRUpdater(model, optimizer)
        for _ in range(2):
            step(model, torch.randn(5, 12), optimizer, updater)
        assert eval_frame._stance.stance == "force_eager"
        updater.close()
        assert eval_frame._stance.stance == "eager_on_recompile"
        assert all(weight.observer is None for weight in updater.weights.values())
    finally:
        torch.compiler.set_stance("default")


def test_a_change_in_place_behind_the_layer_does_not_hide_its_gradients():
    config = OIALRConfig(target_modules=["0"], delay=2, r=0.5, sigma_cutoff=0.0)
    model = get_peft_model(nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True)), config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    updater = OIALRUpdater(model, optimizer)
    step(model, torch.randn(2, 5, 12), optimizer, updater)
    model(torch.randn(2, 5, 12)).square().mean().backward()
    (seen,) = updater._seen.found.values()
    assert seen.coming is not None
    assert seen.made is not None


def test_an_overflow_whose_step_is_taken_again_is_forgotten():
    moment, spoilt = torch.eye(3), torch.full((3, 3), torch.inf)
    again = Seen("right", spoilt, moment).with_more(Seen("right", moment, moment))
    assert torch.equal(again.coming, moment)
    assert torch.equal(again.made, 2 * moment)


@pytest.mark.parametrize("overflows", [False, True])
def test_after_an_overflow_layers_are_not_compared(overflows):
    model, optimizer, updater = half_way()
    loss = model(torch.randn(6, 12)).square().mean()
    (loss * (torch.inf if overflows else 1)).backward()  # as of a scaled loss whose step will be skipped
    optimizer.zero_grad()
    model(torch.randn(6, 12)).square().mean().backward()
    assert updater._seen.comparable == (not overflows)
    optimizer.step()
    updater.step()
    assert updater._seen.comparable


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_counts_once(reentrant):
    def found(around):
        model, *_, updater = half_way()
        x = torch.ones(6, 12, requires_grad=True)
        around(model, x).square().mean().backward()
        (seen,) = updater._seen.found.values()
        return seen

    plain = found(lambda model, x: model(x))
    again = found(lambda model, x: checkpoint(model, x, use_reentrant=reentrant))
    torch.testing.assert_close(again.coming, plain.coming)
    torch.testing.assert_close(again.made, plain.made)


def test_a_call_whose_output_is_not_used_does_not_count():
    model, *_, updater = half_way()
    model(torch.randn(50, 12))
    assert updater._seen.found == {}


def test_what_was_seen_at_another_rank_is_not_used():
    assert cut_by_activations(torch.randn(4, 4), 2, Seen("right", torch.eye(6))) is None
    assert Seen("right", torch.eye(6)).with_more(Seen("right", torch.eye(4))).coming.shape == (4, 4)


def test_copies_are_not_watched_and_nothing_is_held_afterwards():
    model, optimizer, updater = half_way()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(adapted_weights(model)["layer"].observer))]
    assert adapted_weights(copies[0])["layer"].observer is None
    assert copies[1] is None
    assert adapted_weights(model)["layer"].observer is not None
    step(model, torch.randn(5, 12), optimizer, updater)
    assert adapted_weights(model)["layer"].observer is None


def test_where_values_are_dropped_nobody_looks():
    torch.manual_seed(0)
    model = adapt(nn.Linear(12, 16), update_interval=1, sigma_cutoff=0.3)
    OIALRUpdater(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0))
    assert adapted_weights(model)["layer"].observer is None


def test_it_must_be_a_flag():
    with pytest.raises(TypeError, match="`activation_aware` must be True or False; got 1"):
        OIALRConfig(activation_aware=1)


def test_a_run_that_was_interrupted_before_its_update_looks_no_more_once_another_begins():
    """What it holds keeps torch.compile off."""
    model = get_peft_model(MLP(), OIALRConfig(r=4, delay=1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    interrupted = OIALRUpdater(model, optimizer)
    assert interrupted._seen._looks
    again = OIALRUpdater(model, optimizer)
    assert again._seen._looks
    assert not interrupted._seen._looks
    again.close()
