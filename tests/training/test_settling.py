"""`delay="auto"`: each layer is factorised when its own basis has settled."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.plain import model_size
from tests.conftest import MLP
from tests.training.runs import snapshot, trainer


AUTO = {"delay": "auto", "update_interval": 1, "train_rest": True, "sigma_cutoff": 0.0}
STEPS = 40


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calm, self.late = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.late(self.calm(x))


def made(model: nn.Module, steps: int | None = STEPS, **fields):
    """A model and its updater; the optimizer leaves the weights to the test."""
    model = get_peft_model(model, OIALRConfig(**(AUTO | fields)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    return model, optimizer, OIALRUpdater(model, optimizer, total_steps=steps)


def drive(model, optimizer, updater, steps: range, calls: int = 1):
    """Steps in which one basis turns a little and steadily, the other less and less until a third of the run."""
    left, reports = {}, []
    for step in steps:
        noise = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for name, size in (("calm", 0.002), ("late", 0.2 * 0.7**step)):
                weight = updater.weights[name]
                if not weight.is_factored:
                    weight.core.add_(size * torch.randn(weight.core.shape, generator=noise))
        model(torch.randn(4, 32, generator=noise)).sum().backward()
        optimizer.step()
        if step % calls == 0:
            reports.append(updater.step())
        optimizer.zero_grad()
        left |= {n: step for n, w in updater.weights.items() if w.is_factored and n not in left}
    return left, reports


def test_layers_leave_one_by_one_when_their_bases_have_settled():
    left, reports = drive(*made(Two()), range(1, STEPS + 1))
    assert left["calm"] == 8  # three stabilities, every other step
    assert left["calm"] < left["late"] < STEPS // 2
    first = reports[0]
    assert first.waiting == {"calm": None, "late": None}
    assert not first.factorised
    assert "2 layers wait for their bases to settle" in str(first)
    between = reports[left["calm"] - 1]
    assert between.factorised
    assert 0.5 < between.waiting["late"] < 0.999
    assert between.as_logs()["oialr/waiting_layers"] == 1
    assert reports[-1].waiting == {}


def test_bases_are_measured_where_the_updater_is_called_now_and_then():
    left, _ = drive(*made(Two()), range(1, STEPS + 1), calls=3)
    assert left["calm"] <= 12 < left["late"]


def test_all_leave_when_half_of_the_run_is_over():
    model, optimizer, updater = made(Two())
    for step in range(1, STEPS // 2 + 1):
        with torch.no_grad():  # always climbing
            for weight in updater.weights.values():
                if not weight.is_factored:
                    weight.core.add_(3 * 0.75**step * torch.randn(weight.core.shape))
        model(torch.randn(4, 32)).sum().backward()
        optimizer.step()
        report = updater.step()
    assert report.waiting == {}
    assert all(weight.is_factored for weight in updater.weights.values())


def test_an_interrupted_run_goes_on_bit_for_bit_while_bases_are_measured(tmp_path):
    torch.manual_seed(0)
    start = Two().state_dict()

    def fresh():
        model = Two()
        model.load_state_dict(start)
        return model

    whole = made(fresh())
    left, _ = drive(*whole, range(1, STEPS + 1))
    for stop in (left["calm"] - 1, left["calm"], left["late"] - 1):
        model, optimizer, updater = made(fresh())
        drive(model, optimizer, updater, range(1, stop + 1))
        model.save_pretrained(tmp_path / str(stop))
        state = json.loads(json.dumps(updater.state_dict()))
        assert state["settling"].keys() == {name for name in left if left[name] > stop}
        model = PeftModel.from_pretrained(fresh(), tmp_path / str(stop), is_trainable=True)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        updater = OIALRUpdater(model, optimizer, total_steps=STEPS)
        updater.load_state_dict(state)
        again, _ = drive(model, optimizer, updater, range(stop + 1, STEPS + 1))
        assert {**again, **{n: s for n, s in left.items() if s <= stop}} == left
        expected, found = whole[0].state_dict(), model.state_dict()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.parametrize("step", [3, 4, 9])
def test_the_trainer_resumes_bit_for_bit(step, tmp_path):
    settings = AUTO | {"sigma_cutoff": 0.3}
    whole = trainer(str(tmp_path), settings, save_strategy="steps", save_steps=step)
    whole.train()
    saved = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
    progress = saved["stateful_callbacks"]["OIALRCallback"]["attributes"]["progress"]
    assert ("settling" in progress) == (step < 9)  # by then all have left; at step 4 the first did
    resumed = trainer(str(tmp_path / "b"), settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    expected, found = snapshot(whole), snapshot(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_ranks_of_a_saved_adapter_are_null_where_layers_wait(tmp_path):
    model, optimizer, updater = made(Two())
    drive(model, optimizer, updater, range(1, 10))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["ranks"] == {"calm": 32, "late": None}


def test_a_size_that_was_asked_for_is_reached():
    model, optimizer, updater = made(Two(), target_size=0.5, bases="longer", sigma_cutoff=0.1)
    left, reports = drive(model, optimizer, updater, range(1, STEPS + 1))
    assert left["calm"] < left["late"]
    assert reports[left["calm"]].ranks["late"] == 32  # it counts in the choice, and is not cut yet
    assert 0.48 < model_size(model).share <= 0.5


def test_layers_that_are_dense_at_the_end_are_named():
    model, optimizer, updater = made(Two())
    drive(model, optimizer, updater, range(1, 10))
    with pytest.warns(OIALRWarning, match="with 1 of 2 layers still dense, late: their bases had not settled"):
        updater.summary()


def test_a_run_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match=r"`delay='auto'` .* whose length is not known here.*total_steps="):
        made(MLP(), steps=None)


@pytest.mark.parametrize(
    ("settling", "rule"),
    [
        ([], "`settling` must be an object"),
        ({"calm": {"sketch": "00", "stabilities": []}}, "`settling` of 'calm' must have a `sketch` of 1024"),
        ({"calm": {"sketch": "0" * 8192, "stabilities": ["1"]}}, "must have `stabilities`, a list of numbers"),
    ],
)
def test_a_damaged_state_is_named(settling, rule):
    _, _, updater = made(Two())
    with pytest.raises(ValueError, match=rule):
        updater.load_state_dict({"steps": 3, "settling": settling})
    assert updater.steps == 0
