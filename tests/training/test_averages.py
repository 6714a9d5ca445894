"""Averages of the weights (EMA, SWA) across factorisation, rotations and cuts."""

import contextlib
import copy
import warnings

import pytest
import torch
from peft import get_peft_model
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from oialr_peft import OIALRCallback, OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.layer import weights_of
from tests.conftest import MLP
from tests.training.runs import trainer


SEEDED = torch.Generator().manual_seed(5)
X, Y = torch.randn(64, 12, generator=SEEDED).double(), torch.randint(0, 4, (64,), generator=SEEDED)
DECAY = 0.7


class Shadow:
    """What diffusers' EMAModel is to us: a list of tensors, replaced now and then."""

    def __init__(self, parameters) -> None:
        self.shadow_params = [p.detach().clone() for p in parameters]

    def step(self, parameters) -> None:
        self.shadow_params = [
            s.lerp_(p.detach(), 1 - DECAY) for s, p in zip(self.shadow_params, parameters, strict=True)
        ]


def dense_of(weight, sigma=None):
    """An adapted weight as it is, or what it would be with another sigma."""
    if not weight.is_factored:
        return (weight.core if sigma is None else sigma).detach().clone()
    own = weight.factors
    return (own if sigma is None else own._replace(core=sigma)).compose().detach()


def run(make, chosen=None, *, follow=True, steps=10, **settings):
    """Trains with an average; returns the layers, the average and the same average of dense weights.

    After a cut the dense one is brought into the bases that are left, as the model's own weight is.
    """
    torch.manual_seed(0)
    config = OIALRConfig(**({"update_interval": 4, "layer_step": 1.0, "train_rest": True} | settings))
    model = get_peft_model(MLP().double(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    average, updater = make(model), OIALRUpdater(model, optimizer)
    if follow:
        updater.follow(average)
    weights = list(updater.weights.values())
    dense = [dense_of(weight) for weight in weights]
    for step in range(steps):
        torch.nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        if updater.step() is not None:
            for index, weight in enumerate(weights):
                u, _, vh = weight.factors  # a basis that trains as part of sigma takes nothing away
                dense[index] = dense[index] if u is None else u @ (u.T @ dense[index])
                dense[index] = dense[index] if vh is None else dense[index] @ vh.T @ vh
        optimizer.zero_grad()
        if isinstance(average, Shadow):
            average.step(chosen(model))
        else:
            average.update_parameters(model)
        first = step == 0 and isinstance(average, AveragedModel)  # which starts with a copy
        now = [dense_of(weight) for weight in weights]
        dense = now if first else [old.lerp(new, 1 - DECAY) for old, new in zip(dense, now, strict=True)]
    return model, average, dense


def averaged(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))


PHASES = {
    "rotations": {"sigma_cutoff": 0.0},
    "cuts": {"sigma_cutoff": 0.4},
    "factorisation and cuts": {"delay": 4, "sigma_cutoff": 0.4},
    "bases that move": {"delay": 4, "sigma_cutoff": 0.4, "bases": "longer"},
    "bases that are frozen then": {"delay": 4, "sigma_cutoff": 0.4, "bases": "longer", "freeze_bases": 8},
}


@pytest.mark.parametrize("settings", PHASES.values(), ids=PHASES)
def test_an_averaged_model_that_follows_averages_weights(settings):
    model, average, dense = run(averaged, **settings)
    copies = [m for m in average.modules() if hasattr(m, "kind")]
    if settings["sigma_cutoff"]:
        assert len(set(model.base_model.ranks().values())) > 1
    for layer, expected in zip(copies, dense, strict=True):
        torch.testing.assert_close(dense_of(layer.weights["default"]), expected, rtol=1e-7, atol=1e-9)
    assert average(X).isfinite().all()


def test_an_average_follows_an_update_that_failed_midway(monkeypatch):
    model, average, _ = run(averaged, sigma_cutoff=0.0)
    ours, theirs = (list(weights_of(one, "default").values()) for one in (model, average))
    before = [dense_of(weight) for weight in theirs]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    updater = OIALRUpdater(model, optimizer)
    updater.follow(average)
    monkeypatch.setattr(type(ours[1]), "apply", second_fails(ours, type(ours[1]).apply))
    with pytest.raises(MemoryError):
        steps_of(updater)
    for mine, other, dense in zip(ours, theirs, before, strict=True):
        assert torch.equal(mine.factors.left, other.factors.left)
        torch.testing.assert_close(dense_of(other), dense, rtol=1e-6, atol=1e-8)


def steps_of(updater):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # driven by hand
        for _ in range(1000):
            updater.step()


def second_fails(weights, apply):
    seen = []

    def maybe(self, change):
        seen.extend([self] if self in weights else [])
        if len(seen) > 1 and self is seen[-1]:
            raise MemoryError
        return apply(self, change)

    return maybe


@pytest.mark.parametrize("buffers", [False, True])
def test_stochastic_weight_averaging_goes_on_at_a_cut(buffers):
    """Without following: "The size of tensor a (12) must match the size of tensor b (9)"."""
    model, average, _ = run(lambda m: AveragedModel(m, use_buffers=buffers), sigma_cutoff=0.4)
    assert int(average.n_averaged) == 10
    assert torch.nn.functional.cross_entropy(average(X), Y) < 1.3
    ranks = model.base_model.ranks()
    assert average.module.base_model.ranks() == ranks
    assert min(ranks.values()) < 12


@pytest.mark.parametrize("settings", PHASES.values(), ids=PHASES)
@pytest.mark.parametrize("trained", [False, True], ids=["all parameters", "those that train"])
def test_a_list_of_tensors_that_follows_averages_weights(trained, settings):
    def chosen(model):
        return [p for p in model.parameters() if p.requires_grad or not trained]

    model, shadow, dense = run(lambda model: Shadow(chosen(model)), chosen, **settings)
    weights = [m.weights["default"] for m in model.modules() if hasattr(m, "kind")]
    places = {id(p): place for place, p in enumerate(chosen(model))}
    for weight, expected in zip(weights, dense, strict=True):
        sigma = shadow.shadow_params[places[id(weight.core)]]
        torch.testing.assert_close(dense_of(weight, sigma), expected, rtol=1e-7, atol=1e-9)


def test_diffusers_ema_follows():
    training_utils = pytest.importorskip("diffusers.training_utils")
    torch.manual_seed(0)
    model = get_peft_model(MLP(), OIALRConfig(update_interval=2, layer_step=1.0, sigma_cutoff=0.4))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    updater, ema = OIALRUpdater(model, optimizer), training_utils.EMAModel(trained, decay=0.5, min_decay=0.5)
    updater.follow(ema)
    for _ in range(5):
        torch.nn.functional.cross_entropy(model(X.float()), Y).backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
        ema.step(trained)
    before = dense_of(updater.weights["middle"])
    ema.copy_to(trained)
    after = dense_of(updater.weights["middle"])
    assert 0 < torch.linalg.norm(after - before) / torch.linalg.norm(before) < 0.1


@pytest.mark.parametrize("delay", [0, 4])
@pytest.mark.parametrize("buffers", [False, True])
def test_an_average_that_does_not_follow_is_noticed_before_it_is_wrong(buffers, delay):
    with (
        pytest.warns(OIALRWarning, match=r"seems to be an average .*updater\.follow\(average\)") as caught,
        contextlib.suppress(RuntimeError),  # torch's own, where shapes differ after factorisation
    ):
        run(lambda m: AveragedModel(m, use_buffers=buffers), follow=False, delay=delay, steps=4, sigma_cutoff=0.0)
    assert len(caught) == 1


def test_other_copies_are_left_alone():
    """A reference that stays, a copy that trains by itself, and one that keeps the best weights by loading them."""
    model = get_peft_model(MLP(), OIALRConfig(update_interval=2, layer_step=1.0))
    reference, best, twin = (copy.deepcopy(model) for _ in range(3))
    optimizer, other = (torch.optim.AdamW([p for p in m.parameters() if p.requires_grad]) for m in (model, twin))
    updaters = OIALRUpdater(model, optimizer), OIALRUpdater(twin, other)
    kept = {name: value.clone() for name, value in reference.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        for _ in range(7):
            for trains, steps in ((model, optimizer), (twin, other)):
                trains(X.float()).sum().backward()
                steps.step()
                steps.zero_grad()
            for updater in updaters:
                updater.step()
            best.load_state_dict(model.state_dict())
    assert all(torch.equal(value, kept[name]) for name, value in reference.state_dict().items())


def test_what_does_not_fit_is_refused():
    model = get_peft_model(MLP(), OIALRConfig())
    updater = OIALRUpdater(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    with pytest.raises(ValueError, match="holds 0 OIALR layers of the adapter 'default', the model 3"):
        updater.follow(AveragedModel(MLP()))
    with pytest.raises(ValueError, match="holds 2 tensors, the model 10 parameters of which 3 train"):
        updater.follow([torch.zeros(1), torch.zeros(1)])


def test_an_average_in_the_trainer(tmp_path):
    class Average(OIALRCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            super().on_train_begin(args, state, control, **kwargs)
            self.average = averaged(kwargs["model"])
            self.updater.follow(self.average)

        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            self.average.update_parameters(kwargs["model"])

    callback = Average()
    run = trainer(str(tmp_path), callbacks=[callback], settings={"layer_step": 1.0, "r": 0.4})
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        run.train()
    assert callback.average.module.base_model.ranks() == run.model.base_model.ranks()
    assert max(run.model.base_model.ranks().values()) < 16
