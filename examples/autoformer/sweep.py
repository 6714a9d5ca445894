"""Dense against OIALR over learning rates and seeds, two single-threaded processes at a time, resumable.

    python sweep.py --data ETTm2.csv.gz --rates 1e-5,3e-5,1e-4 --seeds 0,1,2 --output sweep

Both methods run with every learning rate at the first seed; each keeps the rate with the lowest validation MSE after
the last epoch, and runs with that one at the other seeds. Test figures choose nothing. What has a results.json of the
same settings is not run again; all other flags are handed on.
"""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

from report import write_json
from settings import KEEP_BUFFERS, Settings, earlier_results, option
from tqdm.auto import tqdm
from train import METHODS
from transformers import HfArgumentParser


FIGURES = ("test_mse", "test_mae", "trainable_parameters", "trainable_percent", "parameters_held", "compressed_bytes")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", **KEEP_BUFFERS}


@dataclass
class Grid:
    """The runs of the sweep."""

    output: str = option("autoformer-sweep", "Folder for the runs' folders and the aggregated results.json.")
    rates: str = option("1e-5,3e-5,1e-4", "Comma-separated learning rates.")
    seeds: str = option("0,1,2", "Comma-separated seeds; rates are compared at the first.")
    workers: int = option(2, "Processes at a time, one thread each.")

    def folder(self, method: str, rate: str, seed: str) -> Path:
        return Path(self.output) / f"{method}-{rate}-{seed}"

    def record(self, method: str, rate: str, seed: str) -> dict[str, Any]:
        """Returns the record of a finished run."""
        return json.loads((self.folder(method, rate, seed) / "results.json").read_text())["runs"][0]


def check_flags(flags: list[str]) -> None:
    """Refuses flags that the sweep sets itself, and those that no run knows, before anything is run.

    Raises:
        ValueError: naming the flag.
    """
    for flag in flags:
        if flag.split("=")[0] in ("--learning_rate", "--seed", "--methods"):
            raise ValueError(f"{flag}: the sweep sets it for every run; use --rates, --seeds and --output.")
    HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses(flags)


def run_one(grid: Grid, method: str, rate: str, seed: str, flags: list[str]) -> None:
    """Runs run.py for one method, learning rate and seed unless the results are there; its log lies beside them.

    Raises:
        ValueError: the results that are there are of other flags.
        RuntimeError: the process failed; the message names its log.
    """
    folder, own = grid.folder(method, rate, seed), ["--learning_rate", rate, "--seed", seed]
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses([*flags, *own])
    if (earlier := earlier_results(folder, settings)) is not None and earlier["runs"]:
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("run.py")), *flags, *own]
    command += ["--methods", method, "--output", str(folder)]
    with open(folder / "log.txt", "a") as log:
        code = subprocess.call(command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT})
    if code:
        raise RuntimeError(f"{folder.name}: the run must end with code 0, got {code}; read {folder / 'log.txt'}.")


def validation(grid: Grid) -> dict[str, dict[str, float]]:
    """Returns, per method, the validation MSE after the last epoch of every learning rate at the first seed."""
    rates, first = grid.rates.split(","), grid.seeds.split(",")[0]
    return {
        method: {rate: grid.record(method, rate, first)["validation_mse"][-1] for rate in rates} for method in METHODS
    }


def best_rate(by_rate: dict[str, float]) -> str:
    """The rate with the lowest error; a run that diverged is the worst."""
    return min(by_rate, key=lambda rate: (math.isnan(by_rate[rate]), by_rate[rate]))


def aggregate(grid: Grid, chosen: dict[str, str]) -> dict[str, Any]:
    """Returns the command, every run and, per method, the chosen learning rate with mean and spread over seeds."""
    rates, seeds = grid.rates.split(","), grid.seeds.split(",")
    runs = {method: [grid.record(method, rate, seed) for seed in seeds] for method, rate in chosen.items()}
    others = [grid.record(m, rate, seeds[0]) for m in METHODS for rate in rates if rate != chosen[m]]
    first = grid.folder("dense", rates[0], seeds[0]) / "results.json"
    compared = validation(grid)
    methods = {m: {"learning_rate": chosen[m], "validation_mse": compared[m], **spread(runs[m])} for m in METHODS}
    trivial = json.loads(first.read_text())["trivial predictors"]
    return {
        "command": " ".join(["python", "sweep.py", *sys.argv[1:]]),
        "chosen": methods,
        "trivial predictors": trivial,
        "runs": [*runs["dense"], *runs["oialr"]],
        "others": others,
    }


def spread(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns mean and sample standard deviation (None for one seed) of the figures of `runs`, and their number."""
    columns = {name: [run[name] for run in runs] for name in FIGURES}
    figures = {
        name: {"mean": mean(column), "std": stdev(column) if len(column) > 1 else None}
        for name, column in columns.items()
    }
    return {"seeds": len(runs), **figures}


def run_all(grid: Grid, jobs: list[tuple[str, str, str]], flags: list[str], what: str) -> None:
    """Runs (method, rate, seed) jobs, `grid.workers` at a time."""
    with ThreadPoolExecutor(grid.workers) as pool:
        futures = [pool.submit(run_one, grid, *job, flags) for job in jobs]
        for future in tqdm(futures, desc=what):
            future.result()


def main() -> None:
    """Reads the command line, runs what is missing and writes the aggregated results.json."""
    parser = HfArgumentParser(cast(Any, Grid), allow_abbrev=False)  # or --seed would be read as --seeds
    grid, flags = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    check_flags(flags)
    first, *rest = grid.seeds.split(",")
    run_all(grid, [(method, rate, first) for rate in grid.rates.split(",") for method in METHODS], flags, "rates")
    chosen = {method: best_rate(by_rate) for method, by_rate in validation(grid).items()}
    run_all(grid, [(method, rate, seed) for seed in rest for method, rate in chosen.items()], flags, "seeds")
    write_json(Path(grid.output) / "results.json", aggregate(grid, chosen))


if __name__ == "__main__":
    main()
