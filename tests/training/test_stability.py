"""The measure of the basis, the callback in the real Trainer, and its figure."""

import json

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

from oialr_peft import OIALRCallback, OIALRConfig, StabilityCallback
from oialr_peft.linalg import mixing, polar, similarity, stability
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


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (5, 5)])
def test_the_mixing_does_not_see_a_turn_of_the_longer_sides_basis_and_sees_scale(shape):
    weight = torch.randn(*shape, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(max(shape), max(shape), dtype=torch.float64)).Q
    turned = turn @ weight if shape[0] >= shape[1] else weight @ turn
    r = mixing(weight)
    assert r.shape == (5, 5)
    assert (r.diagonal() >= 0).all()
    torch.testing.assert_close(r, r.triu())
    torch.testing.assert_close(mixing(turned), r)
    assert stability(polar(weight), polar(turned)) < 0.9
    assert similarity(r, mixing(3 * weight)) == pytest.approx(0.5)  # 1 - 2 / 4


def test_the_likeness_of_two_matrices():
    first, second = torch.randn(200, 200), torch.randn(200, 200)
    assert similarity(first, first) == 1
    assert similarity(first, -first) == pytest.approx(0, abs=1e-6)
    assert similarity(first, second) == pytest.approx(1 - 0.5**0.5, abs=0.02)
    assert similarity(first * 0, first * 0) == 1


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
    assert all(0 < value < 1 for point in found for value in point["mixing"].values())
    assert found[0]["mixing_mean"] == pytest.approx(sum(found[0]["mixing"].values()) / 15)
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
    earlier = [{name: value for name, value in point.items() if "mixing" not in name} for point in points(path)]
    path.write_text(json.dumps({"points": earlier}))  # as a version before there was the mixing wrote it
    run(3).train(resume_from_checkpoint=True)
    assert [point["step"] for point in points(path)] == [2, 4, 6]
    plot_stability(path, tmp_path / "stability.png")
    assert (tmp_path / "stability.png").stat().st_size > 5000


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="must be at least 1; got 0"):
        StabilityCallback("stability.json", every=0)
    callback, state = StabilityCallback("stability.json"), type("State", (), {"is_world_process_zero": True})()
    state.global_step = 0
    with pytest.raises(ValueError, match="holds no linear layer and no convolution"):
        callback.on_train_begin(None, state, None, model=nn.Embedding(3, 3))
