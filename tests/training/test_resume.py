"""Train 2N equals train N, stop, new process, resume N, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import set_seed

from oialr_peft import OIALRCallback, OIALRConfig, OIALRWarning
from oialr_peft.checkpoint import last_complete_checkpoint
from oialr_peft.layer import adapted_weights
from tests.conftest import tiny_llama
from tests.training.runs import dataset, losses, snapshot, trainer


ROOT = Path(__file__).resolve().parents[2]


def process(output_dir, out, resume=None, settings=None, **arguments):
    """A run in a new process; returns what it saved."""
    command = [sys.executable, "-m", "tests.training.runs", str(output_dir), "--out", str(out)]
    command += ["--settings", json.dumps(settings or {}), "--arguments", json.dumps(arguments)]
    command += ["--resume", str(resume)] if resume else []
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    return torch.load(out, weights_only=True)


def assert_same(whole, resumed, first_step):
    assert resumed["ranks"] == whole["ranks"]
    assert {s: v for s, v in whole["losses"].items() if s > first_step} == {
        s: v for s, v in resumed["losses"].items() if s > first_step
    }
    assert whole["state"].keys() == resumed["state"].keys()
    different = [key for key in whole["state"] if not torch.equal(whole["state"][key], resumed["state"][key])]
    assert different == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """24 steps in one go, with a checkpoint every 3 (steps 3: full rank, 6: factorised and cut in the same step)."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, process(folder, folder / "out.pt", save_strategy="steps", save_steps=3)


@pytest.mark.parametrize("step", [3, 6, 9, 12, 18])
def test_resume_in_a_new_process_is_bit_identical(whole, step, tmp_path):
    folder, expected = whole
    resumed = process(tmp_path, tmp_path / "out.pt", resume=folder / f"checkpoint-{step}")
    assert min(expected["ranks"].values()) < 8
    assert_same(expected, resumed, step)


def test_checkpoints_hold_tensors_and_plain_json_only(whole):
    folder, _ = whole
    for checkpoint in sorted(folder.glob("checkpoint-*")):
        torch.load(checkpoint / "optimizer.pt", weights_only=True)
        progress = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["OIALRCallback"]
        saved = progress["attributes"]["progress"]
        assert saved["steps"] == int(checkpoint.name.removeprefix("checkpoint-"))
        assert saved.keys() <= {"steps", "step_scales"}


def test_resume_of_an_adapter_without_the_rest_and_with_accumulation(tmp_path):
    settings = {"delay": 0, "train_rest": False}
    arguments = {"gradient_accumulation_steps": 2, "max_steps": 16}
    whole = process(tmp_path, tmp_path / "a.pt", settings=settings, save_strategy="steps", save_steps=6, **arguments)
    resumed = process(
        tmp_path / "b", tmp_path / "b.pt", resume=tmp_path / "checkpoint-6", settings=settings, **arguments
    )
    assert_same(whole, resumed, 6)


@pytest.mark.parametrize("settings", [{"delay": 5, "r": 0.5}, {"target_size": 0.7}], ids=["r", "target_size"])
def test_resume_of_a_run_that_keeps_outputs(settings, tmp_path):
    """The checkpoints lie right before the step whose activations decide, and in the middle of two updates."""
    defaults = {name: getattr(OIALRConfig, name) for name in ("sigma_cutoff", "layer_step")}
    settings = {**defaults, **settings, "update_interval": 3}
    whole = trainer(str(tmp_path), settings, save_strategy="steps", save_steps=2, max_steps=12)
    whole.train()
    plain = trainer(str(tmp_path / "p"), {**settings, "activation_aware": False}, max_steps=12)
    plain.train()
    assert losses(plain) != losses(whole)
    for step in (4, 6):
        resumed = trainer(str(tmp_path / f"b{step}"), settings, max_steps=12)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        expected, found = snapshot(whole), snapshot(resumed)
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


MOVING = {"bases": "longer", "delay": 5, "r": 0.5, "freeze_bases": 11, "update_interval": 3}


def test_resume_of_bases_that_move(tmp_path):
    """In a new process the layers are dense at first; the checkpoints hold them dense, one-sided and frozen."""
    whole = process(tmp_path, tmp_path / "a.pt", settings=MOVING, save_strategy="steps", save_steps=4, max_steps=16)
    sides = set()
    for step in (4, 8, 12):
        checkpoint = tmp_path / f"checkpoint-{step}"
        sides.add(bool(json.loads((checkpoint / "adapter_config.json").read_text())["one_sided"]))
        resumed = process(tmp_path / "b", tmp_path / "b.pt", resume=checkpoint, settings=MOVING, max_steps=16)
        assert_same(whole, resumed, step)
    assert sides == {True, False}


@pytest.mark.parametrize("best", [0, 1, 2], ids=["dense", "one side trains", "both bases frozen"])
def test_the_best_model_of_bases_that_move_is_loaded_at_the_end(best, tmp_path):
    """In its form, whatever the one is that the run ended with."""
    scores = iter([float(i == best) for i in range(4)])
    arguments = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4, "max_steps": 16}
    best_model = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    run = trainer(str(tmp_path), MOVING, eval_dataset=dataset(8), **arguments, **best_model)
    run.compute_metrics = lambda _: {"score": next(scores)}
    run.train()
    assert Path(run.state.best_model_checkpoint).name == f"checkpoint-{4 * best + 4}"
    saved = load_file(Path(run.state.best_model_checkpoint) / "adapter_model.safetensors")
    found = {name.replace(".default", ""): tensor for name, tensor in run.model.state_dict().items()}
    assert [name for name, tensor in saved.items() if not torch.equal(tensor, found[name])] == []


RESIDUAL = {"delay": 0, "train_rest": False, "residual": True, "r": 4}


@pytest.mark.parametrize("save_bases", [True, False])
def test_resume_of_a_residual_adapter(save_bases, tmp_path):
    settings = {**RESIDUAL, "save_bases": save_bases}
    whole = trainer(str(tmp_path), settings, save_strategy="steps", save_steps=4, max_steps=8)
    whole.train()
    resumed = trainer(str(tmp_path / "b"), settings, max_steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    expected, found = snapshot(whole), snapshot(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert any("oialr_sigma" in name and float(value.abs().max()) > 1e-3 for name, value in found.items())


@pytest.mark.slow
def test_resume_in_a_new_process_of_a_residual_adapter_whose_bases_are_made_again(tmp_path):
    settings = {**RESIDUAL, "save_bases": False}
    whole = process(tmp_path, tmp_path / "a.pt", settings=settings, save_strategy="steps", save_steps=6, max_steps=16)
    resumed = process(
        tmp_path / "b", tmp_path / "b.pt", resume=tmp_path / "checkpoint-6", settings=settings, max_steps=16
    )
    assert_same(whole, resumed, 6)


def test_resume_on_the_same_trainer_and_with_a_user_optimizer(tmp_path):
    run = trainer(str(tmp_path), save_strategy="steps", save_steps=9)
    run.train()
    whole = {"losses": losses(run), "state": snapshot(run), "ranks": run.model.base_model.ranks()}
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert_same(whole, {"losses": losses(run), "state": snapshot(run), "ranks": run.model.base_model.ranks()}, 9)

    def with_own_optimizer(**kwargs):
        own = trainer(str(tmp_path / "own"), **kwargs)
        optimizer = torch.optim.AdamW([p for p in own.model.parameters() if p.requires_grad], lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 10))
        return trainer(str(tmp_path / "own"), model=own.model, optimizers=(optimizer, schedule), **kwargs)

    first = with_own_optimizer(save_strategy="steps", save_steps=9)
    first.train()
    second = with_own_optimizer()
    second.train(resume_from_checkpoint=str(tmp_path / "own" / "checkpoint-9"))
    expected, found = (
        {"losses": losses(r), "state": snapshot(r), "ranks": r.model.base_model.ranks()} for r in (first, second)
    )
    assert_same(expected, found, 9)


def test_a_second_train_without_resume_goes_on(tmp_path):
    run = trainer(str(tmp_path), max_steps=10)
    run.train()
    ranks = run.model.base_model.ranks()
    run.train()
    (callback,) = (c for c in run.callback_handler.callbacks if isinstance(c, OIALRCallback))
    assert callback.progress["steps"] == 20
    assert sum(run.model.base_model.ranks().values()) < sum(ranks.values())


@pytest.mark.parametrize("larger_is_better", [True, False], ids=["best has larger ranks", "best has the last ranks"])
def test_load_best_model_at_end_across_rank_changes(larger_is_better, tmp_path):
    scores = iter(2 * ([1.0, 5.0, 3.0, 2.0] if larger_is_better else [4.0, 3.0, 2.0, 1.0]))
    run = trainer(
        str(tmp_path),
        eval_dataset=dataset(8),
        eval_strategy="steps",
        eval_steps=6,
        save_strategy="steps",
        save_steps=6,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=larger_is_better,
    )
    run.compute_metrics = lambda _: {"score": next(scores)}
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert best.name == ("checkpoint-12" if larger_is_better else "checkpoint-24")
    saved = json.loads((best / "adapter_config.json").read_text())["ranks"]
    assert run.model.base_model.ranks() == saved
    if larger_is_better:
        with pytest.warns(OIALRWarning, match="moments of another rank"):
            run.train()  # the optimizer holds moments of later ranks: they start afresh instead of failing


def test_the_last_complete_checkpoint_is_the_newest_that_was_written_to_its_end(tmp_path):
    assert last_complete_checkpoint(tmp_path / "absent") is None
    for step, state in ((2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (12, '{"global_st'), (14, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"x": torch.ones(2)}, folder / "adapter_model.safetensors")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_disk_that_fills_up_while_saving_costs_one_checkpoint(tmp_path, monkeypatch):
    whole = trainer(str(tmp_path / "whole"))
    whole.train()
    folder, calls, save = tmp_path / "full", [], torch.save

    def full(data, path, *args, **kwargs):
        calls.append(path)
        if "checkpoint-16" in str(path):
            raise OSError(28, "No space left on device")
        return save(data, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            trainer(str(folder), save_strategy="steps", save_steps=8).train()
    assert (folder / "checkpoint-16" / "adapter_model.safetensors").exists()
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-8")
    again = trainer(str(folder))
    again.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_a_run_that_is_resumed_past_its_delay_is_factorised_at_once(tmp_path):
    """Its delay was half of a longer run, and the next update would come after the end."""
    settings = {"delay": 0.5, "update_interval": 30}
    trainer(tmp_path, settings, save_strategy="steps", save_steps=16, max_steps=40).train()
    shorter = trainer(tmp_path / "b", settings, max_steps=24)
    shorter.train(resume_from_checkpoint=tmp_path / "checkpoint-16")
    assert all(weight.is_factored for weight in adapted_weights(shorter.model).values())
    updates = [entry["step"] for entry in shorter.state.log_history if "oialr/mean_rank" in entry]
    assert updates == [17]


def test_a_callback_counts_anew_for_a_model_whose_first_state_was_loaded(tmp_path):
    run = trainer(tmp_path, max_steps=12)
    first = {name: value.clone() for name, value in run.model.state_dict().items()}
    for _ in range(2):
        run.model.load_state_dict(first)
        run.optimizer = run.lr_scheduler = None
        run.train()
        assert [entry["step"] for entry in run.state.log_history if "oialr/mean_rank" in entry] == [6, 10]


@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize("best", [False, True])
def test_folds_of_a_model_are_alike_whichever_is_brought_back_at_the_end(delay, best, tmp_path):
    settings = {"delay": delay, "update_interval": 3, "layer_step": 0.3, "sigma_cutoff": 0.3, "train_rest": False}
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    every |= {"metric_for_best_model": "score", "greater_is_better": False, "load_best_model_at_end": True}
    run, ranks = trainer(tmp_path, settings, max_steps=12, eval_dataset=dataset(4), **(every if best else {})), []
    run.compute_metrics = lambda _: {"score": run.state.global_step}  # so that the first is the best
    first = {name: value.clone() for name, value in run.model.state_dict().items()}
    for _ in range(2):
        run.model.load_state_dict(first)
        run.optimizer = run.lr_scheduler = None
        set_seed(3)
        run.train()
        ranks.append([entry["oialr/mean_rank"] for entry in run.state.log_history if "oialr/mean_rank" in entry])
    assert ranks[0] == ranks[1]
    assert len(set(ranks[0])) > 2


def test_the_best_of_an_adapter_that_the_trainer_would_not_find_is_refused_before_the_first_step(tmp_path):
    model = get_peft_model(tiny_llama(), OIALRConfig(), adapter_name="mine")
    run = trainer(
        tmp_path, model=model, load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps",
        eval_steps=4, save_steps=4, eval_dataset=dataset(4),
    )  # fmt: skip
    with pytest.raises(ValueError, match="brings back the adapter 'default' alone, and 'mine' trains"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("left", [0, 100])
def test_a_checkpoint_with_a_state_that_was_cut_off_is_passed_over(file, left, tmp_path):
    trainer(tmp_path, max_steps=8, save_strategy="steps", save_steps=4).train()
    whole = (tmp_path / "checkpoint-8" / file).read_bytes()
    (tmp_path / "checkpoint-8" / file).write_bytes(whole[:left])
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-8" / file).write_bytes(whole)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
