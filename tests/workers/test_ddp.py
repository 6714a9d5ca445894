"""Two real processes over gloo, launched by torchrun: they stay alike, and equal one process."""

import json

import pytest
import torch

from tests.workers.launch import results, torchrun


SHARES = 6  # the 24 combinations in six launches, of which every test run makes one


@pytest.mark.parametrize("share", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, SHARES))])
def test_two_processes_stay_identical_through_the_trainer(share, tmp_path):
    runs = results(torchrun(2, "ddp_worker", tmp_path, share, SHARES))
    assert len(runs) == 24 // SHARES
    for run in runs:
        assert run["wrapped"], run
        assert run["cuts"] >= 3, run
        assert run["difference"] == 0.0, run


@pytest.mark.slow
def test_two_processes_with_a_residual_adapter(tmp_path):
    (run,) = results(torchrun(2, "residual_worker", tmp_path))
    assert run["wrapped"]
    assert run["difference"] == 0.0
    assert run["moved"] > 1e-3
    assert run["together"] == 0.0


def test_two_processes_let_the_same_layers_leave_the_full_rank_phase(tmp_path):
    (run,) = results(torchrun(2, "settling_worker", tmp_path))
    assert run["wrapped"]
    assert run["difference"] == 0.0
    assert run["waiting"][0] == 14
    assert len(set(run["waiting"])) >= 3  # not all at once
    assert run["waiting"][-1] == 0


def test_two_processes_with_half_batches_equal_one_process(tmp_path):
    for processes in (1, 2):
        torchrun(processes, "loop_worker", tmp_path)
    one, two = (json.loads((tmp_path / f"facts-{n}.json").read_text()) for n in (1, 2))
    assert one["ranks"] == two["ranks"]
    assert one["cuts"] == two["cuts"] >= 3
    assert abs(two["loss"] / one["loss"] - 1) < 1e-4  # after 100 steps, in which rounding has grown
    states = [torch.load(tmp_path / f"state-{n}.pt") for n in (1, 2)]
    weights = [{**rest(state), **composed(state)} for state in states]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-9, msg=name)
    # one reduction a step, of the trainable parameters and nothing else, also after the cuts
    assert {step["reductions"] for step in two["log"]} == {1}
    assert all(step["bytes"] == step["trainable_bytes"] for step in two["log"])
    assert two["log"][-1]["bytes"] < two["log"][0]["bytes"] / 2


def composed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the factored layers; their factors are free to differ by signs."""
    names = [key.removesuffix(".oialr_u.default") for key in state if key.endswith(".oialr_u.default")]
    parts = ("oialr_u", "oialr_sigma", "oialr_vh")
    return {name: torch.linalg.multi_dot([state[f"{name}.{part}.default"] for part in parts]) for name in names}


def rest(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if ".oialr_" not in name}
