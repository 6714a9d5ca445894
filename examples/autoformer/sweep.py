"""A grid of runs (methods x learning rates x seeds), two single-threaded processes at a time, resumable.

    python sweep.py --data path/to/ETTm2.csv.gz --methods dense,oialr --rates 5e-5,1e-4 --seeds 1,2,3

A cell whose result exists is not run again. All other flags are handed to run.py.
The learning rate of each method is chosen by the mean validation MSE after the last epoch, never by test figures.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

from report import write_json
from settings import Settings, option
from tqdm.auto import tqdm
from transformers import HfArgumentParser


FIGURES = (
    "test_mse",
    "test_mae",
    "trainable_parameters",
    "trainable_percent",
    "parameters_held",
    "bytes_on_disk",
    "seconds_per_step",
)


@dataclass
class Grid:
    """The cells of the sweep."""

    output: str = option("autoformer-sweep", "Folder for the cells' folders and the aggregated results.json.")
    methods: str = option("dense,oialr", "Comma-separated methods.")
    rates: str = option("1e-4", "Comma-separated learning rates.")
    seeds: str = option("2021,2022,2023", "Comma-separated seeds.")
    workers: int = option(2, "Processes at a time, one thread each.")


@dataclass(frozen=True)
class Cell:
    """One run: its place in the grid, its command-line flags and the settings they mean."""

    method: str
    rate: str
    seed: str
    folder: Path
    flags: list[str]
    settings: Settings


def make_cells(grid: Grid, flags: list[str]) -> list[Cell]:
    """Returns the cells of `grid`; `flags` are those of run.py, the same for all cells.

    Raises:
        ValueError: `flags` set what the grid sets.
    """
    taken = [flag for flag in flags if flag.split("=")[0] in ("--learning_rate", "--seed")]
    if taken:
        raise ValueError(f"{taken[0]}: the grid sets it for every cell; use --rates and --seeds.")
    cells = []
    for method, rate, seed in product(grid.methods.split(","), grid.rates.split(","), grid.seeds.split(",")):
        folder = Path(grid.output) / f"{method}-{rate}-{seed}"
        own = [*flags, "--learning_rate", rate, "--seed", seed, "--output", str(folder)]
        (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses(own)
        cells.append(Cell(method, rate, seed, folder, [*own, "--methods", method], settings))
    return cells


def run_cell(cell: Cell) -> None:
    """Runs one cell as a process of its own unless its results.json exists; its log lies in its folder.

    Raises:
        ValueError: there is a result, but of other settings.
        RuntimeError: the process failed; the message names its log.
    """
    result, log_file = cell.folder / "results.json", cell.folder / "log.txt"
    if result.exists():
        if json.loads(result.read_text())["settings"] != asdict(cell.settings):
            raise ValueError(f"{result}: must come from the same settings, it does not; give another --output.")
        return
    cell.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("run.py")), *cell.flags]
    with open(log_file, "w") as log:
        code = subprocess.call(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if code:
        raise RuntimeError(f"{cell.folder.name}: the run must end with code 0, got {code}; read {log_file}.")


def aggregate(cells: list[Cell]) -> dict[str, Any]:
    """Returns every run and, per method, the learning rate chosen on validation with mean and spread over seeds."""
    results = [json.loads((cell.folder / "results.json").read_text()) for cell in cells]
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell, result in zip(cells, results, strict=True):
        groups.setdefault(cell.method, {}).setdefault(cell.rate, []).append(result["runs"][0])
    chosen = {}
    for method, by_rate in groups.items():
        validation = {rate: mean(run["validation_mse"][-1] for run in runs) for rate, runs in by_rate.items()}
        best = min(validation, key=validation.__getitem__)
        chosen[method] = {"learning_rate": best, "validation_mse": validation, **spread(by_rate[best])}
    runs = [result["runs"][0] for result in results]
    return {"chosen": chosen, "trivial predictors": results[0]["trivial predictors"], "runs": runs}


def spread(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns mean and sample standard deviation (None for one seed) of the figures of `runs`, and their number."""
    columns = {name: [run[name] for run in runs] for name in FIGURES}
    figures = {
        name: {"mean": mean(column), "std": stdev(column) if len(column) > 1 else None}
        for name, column in columns.items()
    }
    return {"seeds": len(runs), **figures}


def main() -> None:
    """Reads the command line, runs the missing cells and writes the aggregated results.json."""
    parser = HfArgumentParser(cast(Any, Grid), allow_abbrev=False)  # or --seed would be read as --seeds
    grid, flags = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    cells = make_cells(grid, flags)
    with ThreadPoolExecutor(grid.workers) as pool:
        for job in tqdm([pool.submit(run_cell, cell) for cell in cells], desc="runs"):
            job.result()
    write_json(Path(grid.output) / "results.json", aggregate(cells))


if __name__ == "__main__":
    main()
