"""Trains Autoformer dense and with OIALR on one series and compares them. See README.md.

`python run.py` is a demo on a synthetic series (minutes); `python run.py --data ETTm2.csv.gz` is the benchmark.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from baselines import baseline_errors
from data import load_series
from model import build_model
from report import print_table, write_json
from settings import Settings, earlier_results, option
from train import METHODS, check_oialr, model_config, train_one
from transformers import HfArgumentParser
from windows import Splits, make_splits


@dataclass
class Choice:
    """What to run."""

    methods: str = option(",".join(METHODS), "Comma-separated: dense, oialr or both.")
    resume: bool = option(False, "Go on from the last whole checkpoint in the output; --patience writes one an epoch.")

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods.split(",") if name not in METHODS]
        if unknown:
            raise ValueError(f"methods: must be among {METHODS}, got {unknown}; give for example dense,oialr.")


def prepare(settings: Settings, methods: list[str]) -> Splits:
    """Returns the windows after every check that can fail, so that nothing fails after hours of training.

    Raises:
        ValueError: series, lengths, model sizes or OIALR's settings are unfit; see `load_series`, `make_splits`,
            `build_config`, `check_oialr`.
    """
    config = model_config(settings)
    splits = make_splits(load_series(settings.data), settings.context, settings.horizon, settings.label_length)
    if len(splits.train) < settings.batch_size:
        raise ValueError(
            f"batch_size: at most the {len(splits.train)} training windows, got {settings.batch_size}; lower it."
        )
    build_model(config, settings.mend_attention)
    if "oialr" in methods:
        check_oialr(settings, splits)
    return splits


def compare(methods: list[str], settings: Settings, resume: bool = False) -> dict[str, object]:
    """Runs the trivial predictors and `methods`, writes everything to `settings.output`, returns results.json.

    What the folder has of other methods, with the same settings, is kept.
    """
    folder = Path(settings.output)
    earlier = earlier_results(folder, settings)
    splits = prepare(settings, methods)
    baselines = baseline_errors(splits.test)
    runs = [run for run in earlier["runs"] if run["method"] not in methods] if earlier else []
    results = {"settings": asdict(settings), "trivial predictors": baselines, "runs": runs}
    if earlier is None:
        write_json(folder / "results.json", results)  # whose the checkpoints are, should this be cut off
    for method in methods:
        runs.append(train_one(method, settings, splits, resume))
        write_json(folder / "results.json", results)
    title = f"{settings.data or 'synthetic series'}, {splits.protocol} rows, horizon {settings.horizon}, test split"
    print_table(title, baselines, runs)
    if "oialr" in methods:
        plot_trace(folder / "oialr" / "trace.jsonl", folder / "ranks.png")
    return results


def plot_trace(trace: Path, picture: Path) -> None:
    """Draws the ranks over time, if any basis update has left a trace."""
    if trace.exists():
        from oialr_peft.report.plots import plot_ranks

        plot_ranks(trace, picture)


def main() -> None:
    """Reads the command line and runs the comparison."""
    settings, choice = HfArgumentParser(cast(Any, (Settings, Choice))).parse_args_into_dataclasses()
    compare(choice.methods.split(","), settings, choice.resume)


if __name__ == "__main__":
    main()
