"""The measurements measure what they say, run, and their tables are what the results give. Times are not asserted."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn


ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_generated_from_the_results() -> None:
    tables = load("tables")
    results = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "results").glob("*.json")}
    assert tables.render("README.md.jinja", results) == (FOLDER / "README.md").read_text()
    assert tables.render("summary.md.jinja", results) in (ROOT / "docs" / "speed.md").read_text()


def test_a_ratio_is_the_median_over_rounds_against_the_fastest_of_the_others() -> None:
    seconds = {"own": [2.0, 8.0, 3.0], "slow": [4.0, 9.0, 9.0], "quick": [1.0, 16.0, 1.0]}
    assert load("timing").ratio(seconds, "own", "slow", "quick") == 2.0


def test_every_run_takes_part_once_per_round() -> None:
    order: list[str] = []
    seconds = load("timing").interleave({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3)
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert all(sorted(one) == list("abc") for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_kept_bytes_count_each_storage_once_and_no_weights() -> None:
    model, x = nn.Linear(8, 4), torch.randn(16, 8)
    own = x.clone()  # kept for the weight's gradient; y is kept by both of its uses

    def forward() -> torch.Tensor:
        y = model(own)
        return (y.square() + y.exp()).sum()

    exponential = 16 * 4 * 4
    assert load("memory").kept_for_backward(model, forward) == own.nbytes + 16 * 4 * 4 + exponential


def test_state_bytes_count_tensors_inside_projectors() -> None:
    class Projector:
        def __init__(self) -> None:
            self.matrix = torch.zeros(3, 3)

    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    optimizer.state[parameter] = {"momentum": torch.zeros(2), "projector": Projector(), "step": 3}
    assert load("memory").state_bytes(optimizer) == 8 + 36


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags"),
    {
        "layer.py": ["--rows", "64", "--rounds", "1"],
        "step.py": ["--task", "autoformer", "--rounds", "1", "--methods", "dense", "OIALR 25%", "LoRA r16"],
        "updates.py": ["--steps", "3", "--updates", "2"],
        "initialisation.py": ["--ranks", "16"],
        "latency.py": ["--rounds", "1", "--shares", "0.1"],
        "process_memory.py": ["--layers", "1", "--sequences", "1", "--steps", "4"],
        "load_memory.py": ["--repeats", "1", "--share", "0.05"],
    }.items(),
)
def test_every_measurement_runs(script: str, flags: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / script), *flags, "--output", str(tmp_path / "out.json")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "out.json").read_text())["versions"]["torch"]
