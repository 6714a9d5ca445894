"""The measure of the basis, the callback in the real Trainer, and its figure."""

import json

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from oialr_peft import OIALRCallback, OIALRConfig, OIALRWarning, StabilityCallback
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
    assert set(found[0]["stability"]) == set(model.base_model.ranks())
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
    with pytest.raises(ValueError, match="trains no linear layer and no convolution"):
        callback.on_train_begin(None, state, None, model=nn.Embedding(3, 3))


class Several(nn.Module):
    """Layers that are held as one matrix, as several, and not at all."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)
        self.fc = nn.Linear(8, 8)
        self.zeros = nn.Linear(8, 8, bias=False)
        self.frozen = nn.Linear(8, 3).requires_grad_(False)
        nn.init.zeros_(self.zeros.weight)

    def forward(self, x, labels=None):
        h = torch.tanh(self.grouped(x)).mean((2, 3))
        logits = self.frozen(torch.tanh(self.fc(h)) + self.zeros(h))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


CHANCE = torch.Generator().manual_seed(0)
PICTURES = [{"x": torch.randn(4, 5, 5, generator=CHANCE), "labels": place % 3} for place in range(16)]


def train_several(tmp_path, callbacks, config=None, **changes):
    torch.manual_seed(0)
    model = Several() if config is None else get_peft_model(Several(), config)
    options = {"max_steps": 4, "label_names": ["labels"], "remove_unused_columns": False, **changes}
    arguments = TrainingArguments(
        str(tmp_path / "run"), report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.01, **options
    )
    run = Trainer(model, arguments, train_dataset=PICTURES, callbacks=callbacks)
    run.train()
    return run.model


class Weights(TrainerCallback):
    """The dense weights of the layers at the start and at the end, as the matrices that they are."""

    def __init__(self, names):
        self.names, self.start, self.end = names, {}, {}

    def _take(self, model):
        layers = {name: model.get_submodule(f"base_model.model.{name}") for name in self.names}
        found = {name: (layer.weights["default"], layer.matrix_shape) for name, layer in layers.items()}
        return {name: weight.dense(torch.float64).detach().reshape(shape) for name, (weight, shape) in found.items()}

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.start = self._take(model)

    def on_train_end(self, args, state, control, model, **kwargs):
        self.end = self._take(model)


def bases_of(matrices):
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("config", [OIALRConfig(sigma_cutoff=0), OIALRConfig(residual=True, r=2)])
def test_several_matrices_and_a_change_beside_the_base_are_measured_as_whole_weights(config, tmp_path):
    path, names = tmp_path / "stability.json", ["grouped", "fc"]
    config.target_modules = set(names)
    weights = Weights(names)
    train_several(tmp_path, [OIALRCallback(), weights, StabilityCallback(path, every=4)], config)
    (point,) = points(path)
    assert list(point["stability"]) == names  # in the model's order, and not what is frozen
    for name, found in point["stability"].items():
        cosines = (bases_of(weights.start[name]) * bases_of(weights.end[name])).sum((-2, -1))
        expected = float(cosines.mean()) / min(weights.start[name].shape[-2:])
        assert found == pytest.approx(expected, abs=1e-4)
        assert expected < 0.9999 or config.residual  # of which four steps move little


def test_what_has_no_basis_does_not_count_and_what_is_not_finite_is_named(tmp_path):
    path = tmp_path / "stability.json"

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 2:
                model.fc.weight.data.fill_(float("nan"))

    with pytest.warns(OIALRWarning, match="weight of 'fc' is not finite"):
        train_several(tmp_path, [Break(), StabilityCallback(path, every=1)])
    found = points(path)
    assert [set(point["stability"]) for point in found[:2]] == [{"grouped", "fc", "zeros"}, {"grouped", "zeros"}]
    assert found[0]["stability"]["zeros"] == 0  # of zeros there is no basis
    plot_stability(path, tmp_path / "stability.png")


def test_a_matrix_without_an_svd_costs_no_run(tmp_path, monkeypatch):
    def fails(matrix, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    with pytest.warns(OIALRWarning, match="weight of 'fc' is not finite, or has no SVD"):
        train_several(tmp_path, [StabilityCallback(tmp_path / "stability.json", every=1)])


def test_a_file_that_cannot_be_written_is_found_before_training_or_costs_no_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "stability.json", tmp_path):
        with pytest.raises(OSError, match="cannot be written"):
            train_several(tmp_path, [StabilityCallback(place)])
    path = tmp_path / "later" / "stability.json"

    class Full(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            failing = state.global_step in (1, 2)
            monkeypatch.setattr("oialr_peft.training.stability.replace_file", self.fail if failing else self.write)

        @staticmethod
        def fail(*_):
            raise OSError("no space left")

    from oialr_peft.training.stability import replace_file

    Full.write = staticmethod(replace_file)
    with pytest.warns(OIALRWarning, match="no space left.*Training goes on"):
        train_several(tmp_path, [Full(), StabilityCallback(path, every=1)])
    assert [point["step"] for point in points(path)] == [1, 2, 3, 4]


def test_a_damaged_file_is_named_on_resume_and_a_run_without_a_checkpoint_is_told(tmp_path):
    path = tmp_path / "stability.json"
    with pytest.warns(OIALRWarning, match="nothing to measure: the run ends at step 4"):
        train_several(tmp_path, [StabilityCallback(path, every=5)])
    assert points(path) == []
    callback, state = StabilityCallback(path), type("State", (), {"is_world_process_zero": True, "global_step": 2})()
    for content in ("", '{"points": [{"st', "[]", '{"points": [1]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="no file of StabilityCallback, or damaged"):
            callback.on_train_begin(None, state, None, model=Several())


def test_an_adapter_that_is_changed_in_the_run_is_measured_from_then_on(tmp_path):
    path = tmp_path / "stability.json"
    model = get_peft_model(Several(), OIALRConfig(residual=True, r=2, target_modules=["fc"]))
    model.add_adapter("other", OIALRConfig(residual=True, r=2, target_modules=["zeros"]))
    callback, state = StabilityCallback(path), type("State", (), {"is_world_process_zero": True})()
    state.global_step, state.max_steps, state.epoch = 0, 9, 0.0
    callback.on_train_begin(None, state, None, model=model)
    model.set_adapter("other")
    for step in (1, 2, 3):
        state.global_step = step
        if step == 3:
            model.requires_grad_(False)  # which is no fault either
        callback.on_epoch_end(None, state, None, model=model)
    assert [(point["step"], list(point["stability"])) for point in points(path)] == [(2, ["zeros"])]
