"""The command `oialr`. It reads arguments and prints; what is computed is in plan/ and report/."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from .plan.inspect import inspect_table
from .plan.numbers import architecture, meta_model, plan_run
from .plan.speed import measure_svd_gflops
from .plan.table import plan_table


_MODEL = "transformers config: Hub id, folder or config.json"
_EMBEDDINGS = "as with OIALRConfig(embeddings=True)"
_ADAPTER = "a saved adapter: folder or Hub id; its config names the base model"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one sub-command; wrong arguments end with a message and status 2."""
    parser = argparse.ArgumentParser(prog="oialr", description="Tools around OIALR training.")
    parser.add_argument("--version", action="version", version=f"oialr_peft {version('oialr-peft')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_inspect, _add_plan, _add_report, _add_plot, _add_compress, _add_merge, _add_card):
        add(commands)
    parsed = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show is no failure
    try:
        parsed.run(parsed)
    except (OSError, ValueError, SafetensorError) as error:
        parser.exit(2, f"oialr: {error}\n")
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        parser.exit(2, f"oialr: {error}. Figures need matplotlib: `pip install matplotlib`.\n")


def _add_inspect(commands: Any) -> None:
    text = "Which layers of a model OIALR takes, and the size of the compressed file at some ranks, from its config."
    inspect = commands.add_parser("inspect", help=text, description=text)
    inspect.add_argument("model", metavar="MODEL", help=_MODEL)
    inspect.add_argument("--embeddings", action="store_true", help=_EMBEDDINGS)
    inspect.set_defaults(run=_inspect)


def _inspect(parsed: argparse.Namespace) -> None:
    from .export.guard import is_compressed

    model = meta_model(parsed.model)
    Console().print(inspect_table(architecture(model, parsed.model, embeddings=parsed.embeddings)))
    if is_compressed(getattr(model.config, "quantization_config", None)):
        print("This model is compressed already; the table is about the dense one that it came from.")


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
    plot.add_argument("trace", metavar="TRACE", help="the file of `OIALRCallback(trace=...)`, or its folder")
    plot.add_argument("output", metavar="PICTURE", help="png, svg or pdf")
    plot.set_defaults(run=_plot)


def _plot(parsed: argparse.Namespace) -> None:
    from .report.plots import plot_ranks

    plot_ranks(parsed.trace, parsed.output)


def _add_compress(commands: Any) -> None:
    text = "A saved adapter as a small model of two-factor layers, which needs no base."
    _add_writer(commands, "compress", text, _compress)


def _compress(parsed: argparse.Namespace) -> None:
    from .export.from_folder import load_to_write
    from .export.save import save_compressed
    from .plain import model_size

    model, processing = load_to_write(parsed.adapter, parsed.output)
    save_compressed(model, parsed.output, processing_class=processing)
    print(f"Written: {parsed.output} ({model_size(model)})")


def _add_merge(commands: Any) -> None:
    text = "A saved adapter merged into its base model: a dense model, which needs nothing of OIALR."
    _add_writer(commands, "merge", text, _merge)


def _merge(parsed: argparse.Namespace) -> None:
    from .export.from_folder import load_to_write
    from .export.merged import save_merged

    save_merged(*load_to_write(parsed.adapter, parsed.output), parsed.output)
    print(f"Written: {parsed.output}")


def _folder(text: str) -> str:
    """A path; an empty one, as of a shell variable that is not set, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the folder has no name; write '.' for the current one")
    return text


def _add_writer(commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], None]) -> None:
    """A command from an adapter to the folder of a model."""
    writer = commands.add_parser(name, help=text, description=text)
    writer.add_argument("adapter", metavar="ADAPTER", help=_ADAPTER)
    writer.add_argument("output", metavar="FOLDER", type=_folder, help="where the model is written")
    writer.set_defaults(run=run)


def _add_card(commands: Any) -> None:
    text = "The model card of a saved adapter, written anew between its comments; what else the card says stays."
    card = commands.add_parser("card", help=text, description=text)
    card.add_argument("adapter", metavar="ADAPTER", help="the folder of a saved adapter")
    card.set_defaults(run=_card)


def _card(parsed: argparse.Namespace) -> None:
    from .cards import write_card
    from .export.from_folder import load_with_base

    if not Path(parsed.adapter).is_dir():
        raise ValueError(f"A card is written into a folder, and '{parsed.adapter}' is none.")
    card = Path(parsed.adapter) / "README.md"
    if not write_card(load_with_base(parsed.adapter, is_trainable=True), parsed.adapter):
        raise ValueError(f"'{card}' was not written; the warning above says why.")
    print(f"Written: {card}")


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
        "--bases", choices=("frozen", "longer"), default="frozen", help="longer with `target_size` (default: frozen)"
    )
    plan.add_argument(
        "--svd-gflops", type=float, help="speed of one process at SVDs (default: measured here, on the CPU, at start)"
    )
    plan.add_argument("--embeddings", action="store_true", help=_EMBEDDINGS)
    plan.add_argument("--json", type=Path, metavar="FILE", help="write every number of the plan to FILE as well")
    plan.set_defaults(run=_plan)


def _plan(parsed: argparse.Namespace) -> None:
    plan = plan_run(
        architecture(meta_model(parsed.model), parsed.model, embeddings=parsed.embeddings),
        parsed.processes,
        rank=parsed.rank,
        update_interval=parsed.update_interval,
        from_scratch=parsed.from_scratch,
        bases=parsed.bases,
        svd_gflops=measure_svd_gflops() if parsed.svd_gflops is None else parsed.svd_gflops,
    )
    Console().print(plan_table(plan))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(plan.as_dict(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
