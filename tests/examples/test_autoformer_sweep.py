"""The sweep's grid, its resuming and its choice of a learning rate, without training."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import sweep
from report import write_json
from sweep import Cell, Grid, aggregate, make_cells, run_cell


def cells(folder: Path, *flags: str) -> list[Cell]:
    return make_cells(Grid(str(folder), "dense,oialr", "1e-4,1e-3", "1,2"), list(flags))


def leave_result(cell: Cell, validation: float, test: float) -> None:
    run = {name: test for name in sweep.FIGURES} | {"validation_mse": [9.0, validation]}
    content = {"settings": asdict(cell.settings), "trivial predictors": {}, "runs": [run]}
    write_json(cell.folder / "results.json", content)


def test_cells_cover_the_grid_and_carry_the_flags(tmp_path: Path) -> None:
    grid = cells(tmp_path, "--d_model", "16")
    assert len({cell.folder for cell in grid}) == len(grid) == 8
    assert {cell.settings.d_model for cell in grid} == {16}
    assert {(c.settings.learning_rate, c.settings.seed) for c in grid} == {(1e-4, 1), (1e-4, 2), (1e-3, 1), (1e-3, 2)}


def test_flags_that_the_grid_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the grid sets it"):
        cells(tmp_path, "--seed=3")


def test_a_finished_cell_is_skipped_and_one_of_other_settings_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(sweep.subprocess, "call", lambda command, **_: calls.append(command) or 1)
    done, missing = cells(tmp_path)[:2]
    leave_result(done, 1.0, 1.0)
    run_cell(done)
    assert calls == []
    with pytest.raises(RuntimeError, match="must end with code 0, got 1"):
        run_cell(missing)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="same settings"):
        run_cell(cells(tmp_path, "--d_model", "16")[0])


def test_the_rate_is_chosen_on_validation_never_on_test(tmp_path: Path) -> None:
    grid = cells(tmp_path)
    for cell in grid:
        better_on_validation = cell.rate == "1e-3"
        leave_result(cell, 1.0 if better_on_validation else 2.0, float(cell.seed) if better_on_validation else 0.0)
    result = aggregate(grid)
    assert result["chosen"]["oialr"]["learning_rate"] == "1e-3"
    assert result["chosen"]["oialr"]["test_mse"] == pytest.approx({"mean": 1.5, "std": 0.5**0.5})
    assert len(json.loads(json.dumps(result))["runs"]) == 8
