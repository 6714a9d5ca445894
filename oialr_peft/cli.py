"""The command `oialr`. It reads arguments and prints; what is computed is in analysis/."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .plan.numbers import architecture, meta_model, plan_run
from .plan.speed import measure_svd_gflops
from .plan.table import plan_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one sub-command; wrong arguments end with a message and status 2."""
    parser = argparse.ArgumentParser(prog="oialr", description="Tools around OIALR training.")
    _add_plan(parser.add_subparsers(required=True, metavar="COMMAND"))
    parsed = parser.parse_args(arguments)
    try:
        parsed.run(parsed)
    except (OSError, ValueError) as error:
        parser.exit(2, f"oialr: {error}\n")


def _add_plan(commands: Any) -> None:
    text = "Work, bytes and memory of a run on several processes, computed from a model's config."
    plan = commands.add_parser("plan", help=text, description=text)
    plan.add_argument("--model", required=True, help="transformers config: Hub id, folder or config.json")
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
