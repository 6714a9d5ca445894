"""The sweep's runs, its resuming and its choice of a learning rate, without training."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import sweep
from report import write_json
from settings import Settings
from sweep import Grid, best_rate, check_flags, main, run_one


def leave_result(folder: Path, validation: float, test: float, **settings: object) -> None:
    run = {name: test for name in sweep.FIGURES} | {"validation_mse": [9.0, validation]}
    content = {"settings": asdict(Settings(**settings)), "trivial predictors": {}, "runs": [run]}
    write_json(folder / "results.json", content)


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_flags_that_the_sweep_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="the sweep sets it"):
        check_flags(["--seed=3"])
    check_flags(["--d_model", "16"])


def test_a_finished_run_is_skipped_and_a_failed_one_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(sweep.subprocess, "call", lambda command, **_: calls.append(command) or 1)
    grid = Grid(str(tmp_path))
    leave_result(grid.folder("dense", "1e-4", "0"), 1.0, 1.0, learning_rate=1e-4, seed=0, output="elsewhere")
    run_one(grid, "dense", "1e-4", "0", [])
    with pytest.raises(ValueError, match=r"other settings \(horizon: 96 there, 192 now\)"):
        run_one(grid, "dense", "1e-4", "0", ["--horizon", "192"])
    assert calls == []
    begun = grid.folder("dense", "1e-3", "0") / "results.json"  # what run.py writes before it trains
    leave_result(begun.parent, 1.0, 1.0, learning_rate=1e-3, seed=0, output="elsewhere")
    begun.write_text(json.dumps({**json.loads(begun.read_text()), "runs": []}))
    with pytest.raises(RuntimeError, match="got 1"):
        run_one(grid, "dense", "1e-3", "0", [])
    assert len(calls) == 1
    calls.clear()
    with pytest.raises(RuntimeError, match=r"must end with code 0, got 1; read .*log\.txt"):
        run_one(grid, "oialr", "1e-4", "0", ["--d_model", "16"])
    assert flag(calls[0], "--d_model") == "16"
    assert flag(calls[0], "--methods") == "oialr"


def test_rates_are_chosen_on_validation_per_method_and_only_those_run_at_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> int:
        calls.append(command)
        rate, seed = flag(command, "--learning_rate"), float(flag(command, "--seed"))
        # Dense does best on validation with 1e-4, OIALR with 1e-3; test figures point the other way.
        validation = float(rate) if flag(command, "--methods") == "dense" else 1 - float(rate)
        given = {"learning_rate": float(rate), "seed": int(seed), "ffn": 32}
        leave_result(Path(flag(command, "--output")), validation, seed, **given)
        return 0

    monkeypatch.setattr(sweep.subprocess, "call", run)
    monkeypatch.setattr(
        sys, "argv", ["sweep.py", "--rates", "1e-4,1e-3", "--seeds", "0,1,2", "--output", str(tmp_path), "--ffn", "32"]
    )
    main()
    result = json.loads((tmp_path / "results.json").read_text())
    assert {method: row["learning_rate"] for method, row in result["chosen"].items()} == {
        "dense": "1e-4",
        "oialr": "1e-3",
    }
    assert result["chosen"]["dense"]["test_mse"] == {"mean": 1.0, "std": 1.0}
    assert len(result["runs"]) == 6
    assert len(result["others"]) == 2
    assert len(calls) == 8  # 2 rates at seed 0, then 2 seeds of one rate each, for either method
    main()
    assert len(calls) == 8


def test_a_rate_that_diverged_is_not_chosen() -> None:
    assert best_rate({"1e-2": math.nan, "1e-3": 0.3, "1e-4": 0.4}) == "1e-3"
