"""The real Trainer: logs, traces, accumulation, clipping, checkpointing, precision, and what is refused."""

import json
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState, TrainingArguments

from oialr_peft import OIALRCallback, OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.report.plots import plot_ranks
from oialr_peft.training.trace import read_trace
from tests.conftest import MLP, tiny_autoformer, tiny_llama, tokens
from tests.training.runs import SETTINGS, dataset, losses, trainer


def test_a_run_learns_shrinks_logs_and_traces(tmp_path):
    class Tracker(TrainerCallback):
        """Stands where TensorBoard and W&B stand: it sees only what `on_log` brings."""

        seen: list = []  # noqa: RUF012

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs))

    trace = tmp_path / "deep" / "trace.jsonl"
    run = trainer(str(tmp_path), callbacks=[Tracker(), OIALRCallback(trace=trace)], max_steps=60)
    run.train()
    found = losses(run)
    assert sum(found[s] for s in range(51, 61)) < 0.95 * sum(found[s] for s in range(1, 11))
    history = [entry for entry in run.state.log_history if "oialr/mean_rank" in entry]
    assert [entry["step"] for entry in history] == [6, *range(10, 61, 4)]
    assert history[-1]["oialr/trainable_parameters"] < history[0]["oialr/trainable_parameters"]
    assert [e for e in Tracker.seen if "oialr/update_seconds" in e]
    updates = read_trace(trace)
    assert updates[0]["factorised"]
    assert updates[-1]["ranks"] == run.model.base_model.ranks()
    assert json.loads(json.dumps(run.state.log_history)) == run.state.log_history
    plot_ranks(trace, tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 5000


def test_the_dense_phase_is_plain_training_bit_for_bit(tmp_path):
    """Before factorisation an OIALR run is the dense run, so a dense twin of the same seed shares its first steps."""
    ours = trainer(str(tmp_path), settings={"delay": 12}, max_steps=11)
    dense = trainer(str(tmp_path), model=tiny_llama(attention_dropout=0.1), callbacks=[], max_steps=11)
    weights = {k.replace(".base_layer", ""): v for k, v in ours.model.base_model.model.state_dict().items()}
    weights = {k.replace("oialr_weight.default", "weight"): v for k, v in weights.items() if v.numel()}
    dense.model.load_state_dict(weights)
    for run in (ours, dense):
        torch.manual_seed(3)  # of dropout
        run.train()
    assert losses(ours) == losses(dense)


def test_last_layers_join_first(tmp_path):
    trace = tmp_path / "trace.jsonl"
    run = trainer(str(tmp_path), callbacks=[OIALRCallback(trace=str(trace))], settings={"layer_step": 0.2})
    run.train()
    names = list(run.model.base_model.ranks())
    cut_by = [set(update["changed"]) for update in read_trace(trace)]
    assert cut_by[0] <= set(names[-2:])
    assert cut_by[0]
    assert cut_by[1] <= set(names[-5:])


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["none", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_accumulation_clipping_and_checkpointing_across_cuts(checkpointing, clip, tmp_path):
    """Half batches twice give the full batch's run; checkpointing changes nothing."""
    kwargs = {"max_grad_norm": clip, "max_steps": 15, "settings": {"sigma_cutoff": 0.2}, "learning_rate": 3e-3}
    model = {}
    for name, extra in {
        "plain": {"per_device_train_batch_size": 4},
        "other": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": checkpointing is not None,
            "gradient_checkpointing_kwargs": {"use_reentrant": bool(checkpointing)},
        },
    }.items():
        base = tiny_llama().double()
        torch.manual_seed(0)
        for parameter in base.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        ours = get_peft_model(base, OIALRConfig(**(SETTINGS | kwargs["settings"])))
        if checkpointing:
            ours.enable_input_require_grads()
        arguments = {k: v for k, v in kwargs.items() if k != "settings"} | extra
        run = trainer(str(tmp_path), model=ours, **arguments)
        run.train()
        assert run.callback_handler.callbacks[1].progress["steps"] == 15
        model[name] = run.model
    assert model["plain"].base_model.ranks() == model["other"].base_model.ranks()
    assert len(set(model["plain"].base_model.ranks().values())) > 1
    # Singular vectors are free in sign, so weights are compared, not factors.
    weights = [m.merge_and_unload().state_dict() for m in model.values()]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-6, atol=1e-8, msg=name)


def test_bf16_autocast_trains_and_cuts(tmp_path):
    run = trainer(str(tmp_path), bf16=True)
    run.train()
    assert all(p.dtype == torch.float32 for n, p in run.model.named_parameters() if "sigma" in n)
    assert sum(run.model.base_model.ranks().values()) < 14 * 16


def test_a_time_series_model_trains_through_the_trainer(tmp_path):
    """Float inputs and no embedding to hook."""
    from datasets import Dataset

    model = get_peft_model(tiny_autoformer(), OIALRConfig(**SETTINGS))
    row = {
        "past_values": torch.randn(16, 12, 3).tolist(),
        "past_time_features": torch.zeros(16, 12, 2).tolist(),
        "past_observed_mask": torch.ones(16, 12, 3).tolist(),
        "future_values": torch.randn(16, 8, 3).tolist(),
        "future_time_features": torch.zeros(16, 8, 2).tolist(),
    }
    run = trainer(str(tmp_path), model=model, max_steps=12)
    run.train_dataset = Dataset.from_dict(row).with_format("torch")
    run.train()
    assert sum(model.base_model.ranks().values()) < 22 * 16


def test_a_callback_on_another_model_raises_before_step_1(tmp_path):
    run = trainer(str(tmp_path), model=tiny_llama())
    before = [p.clone() for p in run.model.parameters()]
    with pytest.raises(TypeError, match="LlamaForCausalLM has no active OIALR adapter"):
        run.train()
    assert run.state.global_step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


def test_two_callbacks_are_refused_before_step_1(tmp_path):
    run = trainer(str(tmp_path), callbacks=[OIALRCallback(), OIALRCallback()])
    with pytest.raises(ValueError, match="several OIALRCallbacks"):
        run.train()
    assert run.state.global_step == 0


def test_a_callback_starts_afresh_with_another_model(tmp_path):
    callback = OIALRCallback(trace=tmp_path / "trace.jsonl")
    for _ in range(2):
        run = trainer(str(tmp_path), callbacks=[callback], max_steps=7)
        run.train()
        assert [update["step"] for update in read_trace(callback.trace)] == [6]


def test_a_run_that_ends_before_the_first_update_says_so(tmp_path):
    with pytest.warns(OIALRWarning, match="ends at optimizer step 4, before the first OIALR update at step 6"):
        trainer(str(tmp_path), max_steps=4).train()


def test_a_merged_adapter_is_not_trained(mlp):
    model = get_peft_model(mlp, OIALRConfig())
    optimizer = torch.optim.AdamW(model.parameters())
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"is merged .*unmerge_adapter"):
        OIALRUpdater(model, optimizer)


def test_lowrank_factorisation_after_a_delay_needs_no_full_svd(monkeypatch):
    model = get_peft_model(MLP(width=80), OIALRConfig(delay=1, init="lowrank", r=2, target_modules=["middle"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    shapes, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda m, **k: shapes.append(tuple(m.shape)) or svd(m, **k))
    report = OIALRUpdater(model, optimizer).step()
    assert report.factorised
    assert report.ranks == {"middle": 2}
    assert shapes == [(80, 10)]  # turned: a wide matrix takes longer
    assert 0.5 < report.dropped["middle"] < 1


def test_a_frozen_adapter_and_a_foreign_optimizer_are_refused(mlp):
    model = get_peft_model(mlp, OIALRConfig())
    with pytest.raises(ValueError, match="does not hold the OIALR parameters of 3 of 3 layers, first 'first'"):
        OIALRUpdater(model, torch.optim.AdamW(model.base_model.model.score.parameters()))
    optimizer = torch.optim.AdamW(model.parameters())
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"is frozen .*is_trainable=True"):
        OIALRUpdater(model, optimizer)


@pytest.mark.parametrize("steps", [1, 24], ids=["a run too short for an update", "a longer one"])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_a_run_without_callback_warns_once_and_names_the_line(optim, steps, tmp_path):
    run = trainer(str(tmp_path), callbacks=[], optim=optim, gradient_accumulation_steps=2, max_steps=steps)
    with pytest.warns(OIALRWarning, match=r"callbacks=\[OIALRCallback\(\)\].*updater.step\(\)") as caught:
        run.train()
    messages = [str(w.message) for w in caught if w.category is OIALRWarning]
    assert len(messages) == 1
    assert messages[0].startswith("An optimizer trains an OIALR adapter, but no OIALR update was made or is to come")


def test_an_updater_that_is_never_called_is_noticed_at_the_second_update(mlp):
    model = get_peft_model(mlp, OIALRConfig(delay=2, update_interval=3))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    updater = OIALRUpdater(model, optimizer)
    with pytest.warns(OIALRWarning, match="6 optimizer steps were taken, but no OIALR update was made") as caught:
        for _ in range(9):
            optimizer.step()
    assert len(caught) == 1
    assert updater.steps == 0


def test_no_warning_when_the_updates_are_made(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        trainer(str(tmp_path), settings={"r": 0.4}).train()


def test_a_layer_with_non_finite_sigma_is_skipped_with_one_warning(mlp):
    model = get_peft_model(mlp, OIALRConfig(update_interval=1, layer_step=1.0, sigma_cutoff=0.5))
    updater = OIALRUpdater(model, torch.optim.AdamW(model.parameters()))
    broken = model.base_model.model.middle.oialr_sigma["default"]
    broken.data[0, 0] = float("nan")
    began = time.perf_counter()
    with pytest.warns(OIALRWarning, match="no SVD for middle"):
        report = updater.step()
    assert 0 < report.seconds <= time.perf_counter() - began
    assert report.skipped == ["middle"]
    assert report.ranks["middle"] == 24
    assert set(report.changed) == {"first", "last"}


def test_accelerate_loop_with_a_scheduler(tmp_path):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from torch.utils.data import DataLoader

    model = get_peft_model(tiny_llama(), OIALRConfig(**SETTINGS))
    # The Trainer of transformers 4 leaves an earlier test's bf16 in Accelerate's state and in the environment.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="no")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    model, optimizer, loader, schedule = accelerator.prepare(
        model, optimizer, DataLoader(dataset(), batch_size=4), schedule
    )
    updater = OIALRUpdater(model, optimizer)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            updater.step()
            schedule.step()
            optimizer.zero_grad()
    assert updater.steps == 12
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert sum(model.base_model.ranks().values()) < 14 * 16
    accelerator.save_state(tmp_path)
    other = get_peft_model(tiny_llama(), OIALRConfig(**SETTINGS))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(tokens()).logits, model(tokens()).logits)


def test_updater_state_round_trips(mlp):
    model = get_peft_model(mlp, OIALRConfig(update_interval=3))
    updater = OIALRUpdater(model, torch.optim.AdamW(model.parameters()))
    updater.step()
    state = json.loads(json.dumps(updater.state_dict()))
    fresh = OIALRUpdater(model, torch.optim.AdamW(model.parameters()))
    fresh.load_state_dict(state)
    assert [fresh.step() is not None for _ in range(2)] == [False, True]


def test_transformers_native_adapters_train(tmp_path):
    model = tiny_llama()
    model.add_adapter(OIALRConfig(update_interval=4, layer_step=1.0, sigma_cutoff=0.4))
    run = trainer(str(tmp_path), model=model, max_steps=9)
    run.train()
    assert [e["step"] for e in run.state.log_history if "oialr/mean_rank" in e] == [4, 8]


def test_an_mlp_trains_in_a_plain_loop_that_keeps_the_old_loss_alive():
    """The old graph holds autograd's accumulators of the old shape; see resize_parameter."""
    model = get_peft_model(MLP(), OIALRConfig(update_interval=1, layer_step=1.0, sigma_cutoff=0.5))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater, kept = OIALRUpdater(model, optimizer), []
    for _ in range(4):
        kept.append(model(torch.randn(8, 12)).square().mean())
        kept[-1].backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad(set_to_none=False)
    assert updater.state_dict()["steps"] == 4


def test_fsdp_that_the_trainer_does_not_do_is_told(mlp):
    model = get_peft_model(mlp, OIALRConfig())
    parts = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    with pytest.warns(OIALRWarning, match="asked for FSDP but does not shard this model"):
        OIALRCallback().on_train_begin(SimpleNamespace(fsdp="full_shard"), TrainerState(max_steps=1000), None, **parts)


def test_one_process_on_several_gpus_is_refused(mlp):
    model = get_peft_model(mlp, OIALRConfig())
    parts = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    args = TrainingArguments(use_cpu=True)
    args._n_gpu = 2
    with pytest.raises(NotImplementedError, match=r"One process on several GPUs is nn\.DataParallel"):
        OIALRCallback().on_train_begin(args, TrainerState(max_steps=1000), None, **parts)


def test_a_callback_begins_anew_with_another_adapter_of_the_model(tmp_path):
    settings = {"delay": 0.5, "update_interval": 4, "train_rest": False, "keep_base_weights": True}
    run = trainer(str(tmp_path), settings, max_steps=8)
    run.train()
    run.model.add_adapter("b", OIALRConfig(**(SETTINGS | settings)))
    run.model.set_adapter("b")
    callback = next(c for c in run.callback_handler.callbacks if isinstance(c, OIALRCallback))
    second = trainer(str(tmp_path), model=run.model, callbacks=[callback], max_steps=8)
    second.train()
    assert callback.progress["steps"] == 8  # and not 16, of which its full-rank phase would be no share
    second.train()
    assert callback.progress["steps"] == 16
