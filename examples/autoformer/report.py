"""What a comparison leaves behind: one table on the terminal, one results.json."""

import json
import os
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def write_json(path: Path, content: Any) -> None:
    """Writes `content` to `path` in one step: a reader, or a run cut short, never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def print_table(title: str, baselines: dict[str, dict[str, float]], runs: list[dict[str, Any]]) -> None:
    """Prints one row per trivial predictor (from `baseline_errors`) and per run (from `train_one`)."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("method", "test MSE", "test MAE", "trainable", "held", "file bytes", "s/step"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for name, errors in baselines.items():
        table.add_row(name, f"{errors['mse']:.4f}", f"{errors['mae']:.4f}", "0", "0", "0", "")
    for run in runs:
        table.add_row(
            run["method"],
            f"{run['test_mse']:.4f}",
            f"{run['test_mae']:.4f}",
            f"{run['trainable_parameters']:,} {run['trainable_percent']:.1f}%",
            f"{run['parameters_held']:,}",
            f"{run['compressed_bytes']:,}",
            f"{run['seconds_per_step']:.3f}",
        )
    Console().print(table)
