"""The command `oialr`. It reads arguments and prints; what is computed is in plan/ and report/."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from .plan.inspect import inspect_table
from .plan.numbers import architecture, meta_model, plan_run
from .plan.speed import measure_svd_gflops
from .plan.table import plan_table


_MODEL = "transformers config: Hub id, folder or config.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one sub-command; wrong arguments end with a message and status 2."""
    parser = argparse.ArgumentParser(prog="oialr", description="Tools around OIALR training.")
    parser.add_argument("--version", action="version", version=f"oialr_peft {version('oialr-peft')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_inspect, _add_plan, _add_report, _add_plot):
        add(commands)
    parsed = parser.parse_args(arguments)
    try:
        parsed.run(parsed)
    except (OSError, ValueError) as error:
        parser.exit(2, f"oialr: {error}\n")
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        parser.exit(2, f"oialr: {error}. Figures need the extra `plots`: pip install 'oialr-peft[plots]'\n")


def _add_inspect(commands: Any) -> None:
    text = "Which layers of a model OIALR takes, and the size of the compressed file at some ranks, from its config."
    inspect = commands.add_parser("inspect", help=text, description=text)
    inspect.add_argument("model", metavar="MODEL", help=_MODEL)
    inspect.set_defaults(run=_inspect)


def _inspect(parsed: argparse.Namespace) -> None:
    Console().print(inspect_table(architecture(meta_model(parsed.model), parsed.model)))


def _add_report(commands: Any) -> None:
    text = "One HTML page about a run, readable without network: loss, ranks, size, time and a table of layers."
    report = commands.add_parser("report", help=text, description=text)
    report.add_argument("run_folder", metavar="RUN", help="the Trainer's output folder, or a trace of the callback")
    report.add_argument("--output", type=Path, help="the file to write (default: report.html beside what is read)")
    report.set_defaults(run=_report)


def _report(parsed: argparse.Namespace) -> None:
    from .report.page import write_report

    run = Path(parsed.run_folder)
    output = parsed.output or (run.parent if run.is_file() else run) / "report.html"
    write_report(run, output)
    print(f"Written: {output}")


def _add_plot(commands: Any) -> None:
    text = "The rank of every layer over a run, as a picture."
    plot = commands.add_parser("plot", help=text, description=text)
    plot.add_argument("trace", metavar="TRACE", help="the file of `OIALRCallback(trace=...)`")
    plot.add_argument("output", metavar="PICTURE", help="png, svg or pdf")
    plot.set_defaults(run=_plot)


def _plot(parsed: argparse.Namespace) -> None:
    from .report.plots import plot_ranks

    plot_ranks(parsed.trace, parsed.output)


def _add_plan(commands: Any) -> None:
    text = "Work, bytes and memory of a run on several processes, computed from a model's config."
    plan = commands.add_parser("plan", help=text, description=text)
    plan.add_argument("--model", required=True, help=_MODEL)
    plan.add_argument("--processes", required=True, type=int, help="processes that train together with DDP")
    plan.add_argument(
        "--rank", type=float, default=0.25, help="rank of every layer as a share of its full rank (default: 0.25)"
    )
    plan.add_argument("--update-interval", type=int, default=400, help="steps between updates (default: 400)")
    plan.add_argument(
        "--from-scratch",
        action="store_true",
        help="as with OIALRConfig(delay=..., train_rest=True): the rest trains too, dense weights are freed and the "
        "processes share the factorisation (default: fine-tuning, as with OIALRConfig())",
    )
    plan.add_argument(
        "--svd-gflops", type=float, help="speed of one process at SVDs (default: measured here, on the CPU, at start)"
    )
    plan.add_argument("--json", type=Path, metavar="FILE", help="write every number of the plan to FILE as well")
    plan.set_defaults(run=_plan)


def _plan(parsed: argparse.Namespace) -> None:
    plan = plan_run(
        architecture(meta_model(parsed.model), parsed.model),
        parsed.processes,
        rank=parsed.rank,
        update_interval=parsed.update_interval,
        from_scratch=parsed.from_scratch,
        svd_gflops=measure_svd_gflops() if parsed.svd_gflops is None else parsed.svd_gflops,
    )
    Console().print(plan_table(plan))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(plan.as_dict(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
