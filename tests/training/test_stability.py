"""The measure of the basis, the callback in the real Trainer, and its figure."""

import json

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

from oialr_peft import OIALRCallback, OIALRConfig, StabilityCallback
from oialr_peft.linalg import polar, stability
from oialr_peft.report.plots import plot_stability
from tests.conftest import tiny_llama, tokens
from tests.training.runs import trainer


def test_the_measure_is_the_mean_cosine_of_the_columns_of_the_polar_factors():
    first, second = (torch.randn(12, 5, dtype=torch.float64) for _ in range(2))
    q, p = polar(first), polar(second)
    torch.testing.assert_close(q.mT @ q, torch.eye(5, dtype=torch.float64))
    assert stability(q, p) == pytest.approx(float(torch.cosine_similarity(q, p, dim=0).mean()))
    assert stability(q, polar(first.mT).mT) == pytest.approx(1)
    assert abs(stability(q, p)) < 0.6


def test_it_sees_the_basis_and_not_the_mixing():
    u, _, vh = torch.linalg.svd(torch.randn(8, 6, dtype=torch.float64), full_matrices=False)
    positive = torch.rand(6, dtype=torch.float64) + 0.1
    assert stability(polar(u @ torch.diag(positive) @ vh), u @ vh) == pytest.approx(1)
    assert stability(polar(u @ torch.diag(positive) @ vh), -u @ vh) == pytest.approx(-1)
    half = polar(u[:, :3] @ torch.diag(positive[:3]) @ vh[:3], rank=3)
    assert stability(u @ vh, half) == pytest.approx(1)  # what was cut does not count


def points(path):
    return json.loads(path.read_text())["points"]


def test_a_run_is_measured_at_every_checkpoint_and_drawn(tmp_path):
    path = tmp_path / "deep" / "stability.json"
    run = trainer(str(tmp_path), model=tiny_llama(), callbacks=[StabilityCallback(path, every=3)], max_steps=9)
    run.train()
    found = points(path)
    assert [point["step"] for point in found] == [3, 6, 9]
    assert next(iter(found[0]["stability"])) == "model.layers.0.self_attn.q_proj"
    assert len(found[0]["stability"]) == 15
    assert all(0 < value < 1 for value in found[0]["stability"].values())
    assert found[0]["mean"] == pytest.approx(sum(found[0]["stability"].values()) / 15)
    plot_stability(path, tmp_path / "stability.png")
    assert (tmp_path / "stability.png").stat().st_size > 5000


def test_with_an_adapter_frozen_bases_leave_what_sigma_turns(tmp_path):
    path = tmp_path / "stability.json"
    model = get_peft_model(tiny_llama(), OIALRConfig(r=4, update_interval=4, sigma_cutoff=0.5, layer_step=1.0))
    callbacks = [OIALRCallback(), StabilityCallback(path, every=2)]
    trainer(str(tmp_path), model=model, callbacks=callbacks, max_steps=6).train()
    assert min(model.base_model.ranks().values()) < 4
    found = points(path)
    assert set(found[0]["stability"]) == {*model.base_model.ranks(), "base_model.model.lm_head"}
    assert all(0 < value <= 1.00001 for point in found for value in point["stability"].values())


def test_by_default_at_the_end_of_each_epoch_and_a_resumed_run_goes_on(tmp_path):
    path = tmp_path / "stability.json"

    def run(epochs):
        data = [{"input_ids": tokens(1)[0], "labels": tokens(1)[0]}] * 8
        arguments = TrainingArguments(
            str(tmp_path / "run"),
            num_train_epochs=epochs,
            per_device_train_batch_size=4,
            save_strategy="epoch",
            report_to=[],
            use_cpu=True,
        )
        return Trainer(tiny_llama(), arguments, train_dataset=data, callbacks=[StabilityCallback(path)])

    run(2).train()
    assert [point["step"] for point in points(path)] == [2, 4]
    run(3).train(resume_from_checkpoint=True)
    assert [point["step"] for point in points(path)] == [2, 4, 6]


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="must be at least 1; got 0"):
        StabilityCallback("stability.json", every=0)
    callback, state = StabilityCallback("stability.json"), type("State", (), {"is_world_process_zero": True})()
    state.global_step = 0
    with pytest.raises(ValueError, match="holds no linear layer and no convolution"):
        callback.on_train_begin(None, state, None, model=nn.Embedding(3, 3))
