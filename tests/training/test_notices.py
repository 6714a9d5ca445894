"""What a run is told about itself: too short, a large cut, never cut, at full rank, the best of another phase."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from peft import get_peft_model

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.policy import Schedule
from oialr_peft.training.notices import too_short
from tests.conftest import MLP
from tests.training.runs import dataset, snapshot, trainer


def adapted(**settings):
    """A model with an updater, its optimizer, and a function that makes steps."""
    model = get_peft_model(settings.pop("model", None) or MLP(), OIALRConfig(**settings))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    return model, optimizer


def outlier() -> MLP:
    """A model whose middle layer has one large singular value and 127 of less than a tenth of it."""
    model = MLP(width=128)
    spectrum = torch.tensor([12.0, *torch.linspace(1.1, 0.9, 127)])
    u, _, vh = torch.linalg.svd(torch.randn(128, 128))
    model.middle.weight.data = u @ torch.diag(spectrum) @ vh
    return model


NAMES = [f"layer{i}" for i in range(25)]


@pytest.mark.parametrize(
    ("schedule", "last", "never"),
    [
        (Schedule(0, 400, 0.1), 1500, 18),  # the defaults: three updates, seven of 25 layers
        (Schedule(0, 400, 0.1), 3999, 3),
        (Schedule(0, 400, 0.1), 4000, 0),
        (Schedule(1000, 400, 0.1), 4600, 0),
        (Schedule(1000, 400, 0.1), 4599, 3),
        (Schedule(0, 100, 1.0), 100, 0),
    ],
)
def test_layers_that_never_come_due_are_named_with_what_to_set(schedule, last, never):
    message = too_short(schedule, NAMES, last)
    assert (message is None) == (never == 0)
    if message:
        assert f"so {never} of 25, layer0 to layer{never - 1}, never do" in message
        interval = int(message.split("`update_interval=")[1].split("`")[0])
        step = float(message.split("`layer_step=")[1].split("`")[0])
        assert too_short(Schedule(schedule.delay, interval, schedule.layer_step), NAMES, last) is None
        assert too_short(Schedule(schedule.delay, interval + 1, schedule.layer_step), NAMES, last)
        assert too_short(Schedule(schedule.delay, schedule.update_interval, step), NAMES, last) is None


def test_a_run_too_short_for_every_layer_says_so_before_step_one(tmp_path):
    with pytest.warns(OIALRWarning, match="after 1 OIALR updates.* 12 of 14, .* never do and keep their rank"):
        trainer(str(tmp_path), settings={"delay": 0, "update_interval": 4, "layer_step": 0.2}, max_steps=6).train()
    model, optimizer = adapted(update_interval=400)
    with pytest.warns(OIALRWarning, match="ends at optimizer step 300, before the first OIALR update at step 400"):
        OIALRUpdater(model, optimizer, total_steps=300)


@pytest.mark.parametrize(("freeze", "told"), [(0.9, True), (0.7, False)])
def test_bases_that_no_update_will_freeze_are_told(freeze, told):
    model, optimizer = adapted(bases="longer", freeze_bases=freeze, update_interval=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        OIALRUpdater(model, optimizer, total_steps=20)
    assert any("they train to the end" in str(w.message) for w in caught) == told


@pytest.mark.parametrize("total", [100.0, numpy.int64(100), torch.tensor(100)])
def test_a_length_of_any_type_is_the_same_length(total):
    model, optimizer = adapted()
    updater = OIALRUpdater(model, optimizer, total_steps=total)
    assert (type(updater.total_steps), updater.policies.schedule.update_interval) == (int, 5)


@pytest.mark.parametrize("total", [-1, 2.5])
def test_a_length_that_is_none_is_refused(total):
    model, optimizer = adapted()
    with pytest.raises(ValueError, match="`total_steps` must be the number of the run's optimizer steps"):
        OIALRUpdater(model, optimizer, total_steps=total)


@pytest.mark.parametrize(
    ("settings", "total", "told"),
    [
        ({"r": 0.5, "delay": 4}, 100, True),
        ({"r": 12, "delay": 0.04}, 100, True),
        ({"r": 1, "delay": 4}, 100, True),
        ({"rank_pattern": {"middle": 4}, "delay": 4}, 100, True),
        ({"r": 0.5, "delay": 5}, 100, False),
        ({"r": 0.5}, 100, False),  # of trained weights
        ({"delay": 4}, 100, False),  # the full rank: nothing of the bases goes
        ({"rank_pattern": {"middle": 1.0}, "delay": 4}, 100, False),
        ({"r": 0.5, "delay": "auto"}, 10_000, False),
        ({"target_size": 0.6, "delay": 4}, 100, False),  # cut bit by bit
        ({"r": 0.5, "delay": 4}, None, False),
    ],
)
def test_weights_that_are_cut_before_they_have_trained_are_told(settings, total, told):
    model, optimizer = adapted(update_interval=5, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        OIALRUpdater(model, optimizer, total_steps=total)
    assert any("when they have hardly trained" in str(warning.message) for warning in caught) == told


def test_one_outlier_that_takes_a_layer_along_is_told_once():
    model, optimizer = adapted(model=outlier(), update_interval=1, layer_step=1.0, target_modules=["middle"])
    updater = OIALRUpdater(model, optimizer)
    with pytest.warns(
        OIALRWarning, match=r"most of 'middle': 2\d%, rank 128 to 64\. `sigma_cutoff` is a share"
    ) as caught:
        for _ in range(3):
            optimizer.step()
            report = updater.step()
    assert len(caught) == 1
    assert report.ranks == {"middle": 16}


def test_a_chosen_rank_at_factorisation_is_no_surprise():
    model, optimizer = adapted(delay=1, r=0.1, activation_aware=False)
    updater = OIALRUpdater(model, optimizer)
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        report = updater.step()
    assert max(report.dropped.values()) > 0.1


def test_layers_whose_outputs_were_not_seen_are_named():
    model, optimizer = adapted(delay=1, r=0.1)
    updater = OIALRUpdater(model, optimizer)
    optimizer.step()
    with pytest.warns(OIALRWarning, match="weights alone what to keep of 3 layers, 'first' among them, although"):
        updater.step()


def test_layers_that_rank_multiple_keeps_from_being_cut_are_named():
    model, optimizer = adapted(rank_multiple=16, rank_pattern={"last": 8})
    with pytest.warns(OIALRWarning, match=r"2 of 3 layers can never be cut: first \(rank 12\) and last \(rank 8\)\."):
        OIALRUpdater(model, optimizer)


@pytest.mark.parametrize("cutoff", [1e-6, 0.0], ids=["wanted", "not wanted"])
def test_layers_still_at_full_rank_at_the_end_are_told(cutoff, capsys, tmp_path):
    settings = {"delay": 0, "layer_step": 1.0, "sigma_cutoff": cutoff}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OIALRWarning)
        trainer(str(tmp_path), settings=settings, max_steps=6).train()
    messages = [str(w.message) for w in caught if w.category is OIALRWarning]
    assert [m.startswith("14 of 14 OIALR layers end no smaller than dense") for m in messages] == [True] * bool(cutoff)
    out = capsys.readouterr().out
    assert "OIALR after 6 optimizer steps: 0 of 14 layers are below their full rank" in out


def test_the_console_gets_a_line_of_words_per_update_and_a_summary(capsys, tmp_path):
    run = trainer(str(tmp_path))
    run.train()
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("OIALR update")] == [
        f"OIALR update {number} at step {step}" for number, step in enumerate(range(6, 23, 4), 1)
    ]
    assert "'oialr/" not in out  # no dict of ours between those of the losses
    last = [line for line in out.splitlines() if line.startswith("OIALR")][-1]
    ranks = run.model.base_model.ranks().values()
    assert last.startswith("OIALR after 24 optimizer steps: ")
    assert f"mean rank {sum(ranks) / 14:.4g} of 13.71" in last
    assert [entry["step"] for entry in run.state.log_history if "oialr/mean_rank" in entry] == list(range(6, 23, 4))


def best_of(scores, tmp_path, **arguments):
    """A run that loads the best of its checkpoints at the end; a score for each, every 3 steps."""
    scores = iter(scores)
    run = trainer(
        str(tmp_path),
        eval_dataset=dataset(8),
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        max_steps=12,
        settings={"update_interval": 3, "layer_step": 1.0},
    )
    run.compute_metrics = lambda _: {"score": next(scores)}
    run.train()
    return run


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([9, 1, 1, 1], r"checkpoint-3, .* 14 of 14 layers are dense again"),
        ([1, 9, 1, 1], r"checkpoint-6, .* layers have a higher rank again, first '.*': \d+ instead of \d+"),
        ([1, 1, 1, 9], None),
    ],
    ids=["dense", "higher ranks", "the last"],
)
def test_a_best_model_of_an_earlier_phase_is_told(scores, words, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OIALRWarning)
        run = best_of(scores, tmp_path)
    messages = [str(w.message) for w in caught if "load_best_model_at_end" in str(w.message)]
    assert len(messages) == (words is not None)
    if words:
        assert re.search(words, messages[0])
        assert Path(run.state.best_model_checkpoint).name in messages[0]


def test_an_adapter_with_frozen_bases_goes_on_with_them_and_says_so(tmp_path):
    """As one does that was saved when frozen bases were the default of `target_size`."""
    settings = {"delay": 0, "update_interval": 3, "target_size": 0.7}
    settings |= {name: getattr(OIALRConfig, name) for name in ("sigma_cutoff", "layer_step")}
    old = trainer(str(tmp_path), {**settings, "bases": "frozen"}, save_strategy="steps", save_steps=6, max_steps=12)
    old.train()
    new = trainer(str(tmp_path / "b"), settings, max_steps=12)
    with pytest.warns(OIALRWarning, match="has no effect on 14 of 14 layers, .* frozen when they were saved"):
        new.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    expected, found = snapshot(old), snapshot(new)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


WITHOUT_CALLBACK = """
from peft import get_peft_model
from transformers import Trainer, TrainingArguments
from oialr_peft import OIALRConfig
from tests.conftest import tiny_llama
from tests.training.runs import dataset
arguments = TrainingArguments("out", max_steps=2, report_to=[], save_strategy="no", use_cpu=True)
Trainer(get_peft_model(tiny_llama(), OIALRConfig()), arguments, train_dataset=dataset(8)).train()
"""


def test_a_trainer_without_the_callback_is_told_of_with_the_filters_as_they_are(tmp_path):
    """Accelerate has one that hides what seems to come from torch's schedulers, around whose step ours is found."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": ""}
    command = [sys.executable, "-c", WITHOUT_CALLBACK]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.count("no OIALRCallback or OIALRUpdater for it") == 1


def test_a_second_run_with_the_same_fault_is_told_too():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(2):
            model, optimizer = adapted(update_interval=10)
            OIALRUpdater(model, optimizer, total_steps=5)
    assert [Path(warning.filename).name for warning in told] == [Path(__file__).name] * 2
    assert "nothing will be cut" in str(told[1].message)
