"""Writes README.md beside this file, and the GPU's table in docs/speed.md, from the results files.

python tables.py

Every job of jobs.py has its rows. One without a result says why it was not measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jobs import JOBS


HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "speed.md"
MARKED = re.compile(r"(<!-- gpu -->\n).*?(<!-- /gpu -->)", re.DOTALL)
NO_GPU = "no GPU"

Result = dict[str, Any]
Line = list[str]


def two(value: float) -> str:
    return f"{value:.2f}"


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f}"


def row(result: Result, **wanted: Any) -> Result:
    """The row of a result that holds these values."""
    return next(r for r in result["rows"] if all(r[key] == value for key, value in wanted.items()))


def _layer(result: Result) -> list[Line]:
    names = ("oialr/dense", "chain/dense", "rebuilt/dense", "oialr/best")
    return [[f"{r['out']} × {r['in']}", f"{r['share']:.0%}", *(two(r[n]) for n in names)] for r in result["rows"]]


def _step(result: Result) -> list[Line]:
    return [
        [
            *(r["method"], two(r["time/dense"]), f"{two(r['least'])} to {two(r['most'])}", two(r["kept/dense"])),
            *(megabytes(r[name]) for name in ("kept", "optimizer", "trainable", "frozen")),
        ]
        for r in result["rows"]
    ]


def _memory(result: Result) -> list[Line]:
    return [
        [
            *(r["method"], megabytes(r["setup"]), *(megabytes(r["steps"][i]) for i in (0, 3, 7, -1))),
            *(two(r["largest/dense"]), two(r["last/dense"])),
        ]
        for r in result["rows"]
    ]


def _updates(result: Result) -> list[Line]:
    lines = [
        [f"{r['mean rank after']:.0f}", f"{r['update seconds']:.3f}", f"{r['step seconds']:.4f}", f"{r['share']:.2%}"]
        for r in result["rows"]
    ]
    return [*lines, ["all", "", "", f"{result['share']:.2%}"]]


def _svd(result: Result) -> list[Line]:
    return [
        [r["shape"], r["way"], f"{r['ms']:.2f}", two(r["time/default"]), f"{r['error']:.0e}"] for r in result["rows"]
    ]


def _profiled(result: Result) -> list[Line]:
    return [
        [r["method"], f"`{r['operator']}`", f"{r['share']:.1%}", f"{r['calls']:.0f}", two(r["waits"])]
        for r in result["rows"]
    ]


def _initialisation(result: Result) -> list[Line]:
    return [
        [w["init"], str(w["rank"] or "full"), f"{w['weights'] / 1e6:,.0f}", f"{w['seconds']:.1f}"]
        for w in result["whole"]
    ]


def _latency(result: Result) -> list[Line]:
    names = ("16x128/dense", "1x16/dense", "1x1/dense", "file/dense")
    return [[r["kind"], *(two(r[name]) if name in r else "" for name in names)] for r in result["rows"]]


def _decode(result: Result) -> list[Line]:
    batches = [key.split()[1].removesuffix("/dense") for key in result["rows"][0] if key.endswith("/dense")]
    return [
        [r["kind"], batch, *(text for what in ("prefill", "decode") for text in _latencies(r, f"{what} {batch}"))]
        for batch in dict.fromkeys(batches)
        for r in result["rows"]
    ]


def _latencies(found: Result, name: str) -> Line:
    return [two(found[f"{name}/dense"]), two(found[f"{name}, ms"])]


def _processes(result: Result) -> list[Line]:
    found = result["rows"][0]
    pairs = zip(found["step seconds"], found["update seconds"], strict=True)
    dense = found["dense step seconds"]
    return [
        [found["backend"], str(number), two(step / dense), f"{step:.4f}", f"{update:.3f}"]
        for number, (step, update) in enumerate(pairs)
    ]


def _llama(result: Result) -> list[Line]:
    step, seconds, _ = result["curve"][-1]
    best = min(result["curve"], key=lambda point: point[2])
    figures = [f"{result['validation']:.3f}", f"{best[2]:.3f} after {best[1]:.0f} s", f"{result['test']:.3f}"]
    return [[*figures, f"{result['held'] / 1e6:.1f}", f"{1000 * seconds / step:.1f}"]]


def _vit(result: Result) -> list[Line]:
    epochs, seconds, accuracy, _ = result["curve"][-1]
    return [[f"{epochs:.0f}", f"{accuracy:.2%}", f"{result['trainable_share']:.1%}", f"{seconds / epochs:.1f}"]]


def _autoformer(result: Result) -> list[Line]:
    run, mean = result["runs"][0], result["trivial predictors"]["context mean"]["mse"]
    errors = [f"{value:.4f}" for value in (run["test_mse"], run["test_mae"], mean)]
    return [[*errors, f"{run['trainable_percent']:.1f} %", str(run["steps"]), f"{run['seconds_per_step']:.4f}"]]


# By the beginning of their names, the jobs of a table and what makes the cells of its rows from a result.
TABLES: dict[str, Callable[[Result], list[Line]]] = {
    "step": _step,
    "layer": _layer,
    "memory": _memory,
    "updates": _updates,
    "svd": _svd,
    "profiled": _profiled,
    "initialisation": _initialisation,
    "latency": _latency,
    "decode": _decode,
    "processes": _processes,
    "llama": _llama,
    "vit": _vit,
    "autoformer": _autoformer,
}


def aims(results: Mapping[str, Result]) -> dict[str, float | None]:
    """The figures that a GPU is to reach; None where they were not measured."""

    def found(job: str, figure: Callable[[Result], float]) -> float | None:
        return figure(results[job]) if job in results else None

    fine_tuned = "OIALR fine-tuning, base freed"
    return {
        "quarter": found("step bf16", lambda r: row(r, method="OIALR 25%")["time/dense"]),
        "full": found("step bf16", lambda r: row(r, method="OIALR 100%")["time/dense"]),
        "updates": found("updates bf16", lambda r: r["share"]),
        "peak": found("memory bf16", lambda r: row(r, method=fine_tuned)["largest/dense"]),
        "end": found("memory bf16", lambda r: row(r, method=fine_tuned)["last/dense"]),
        "decode": found("decode bf16 compiled", lambda r: row(r, kind="0.25")["decode 1/dense"]),
        "initialisation": found("initialisation bf16", lambda r: r["whole"][0]["seconds"]),
    }


def main() -> None:
    """Renders both."""
    results, reasons = read(HERE / "results")
    (HERE / "README.md").write_text(render("README.md.jinja", results, reasons))
    page = PAGE.read_text()
    if not MARKED.search(page):
        raise ValueError(f"{PAGE.name}: no place between <!-- gpu --> and <!-- /gpu -->; add it.")
    table = render("summary.md.jinja", results, reasons)
    PAGE.write_text(MARKED.sub(lambda match: match[1] + table + match[2], page))


def read(folder: Path) -> tuple[dict[str, Result], dict[str, str]]:
    """The results by job, and why others have none."""
    names = {job.name for job in JOBS}
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json") if path.stem in names}
    reasons = folder / "not_measured.json"
    return results, json.loads(reasons.read_text()) if reasons.exists() else {}


def render(template: str, results: Mapping[str, Result], reasons: Mapping[str, str]) -> str:
    """The template's text."""
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    made = sorted({_made(result) for result in results.values()})
    lines = {table: _lines(table, results, reasons) for table in TABLES}
    facts = {"lines": lines, "aims": aims(results), "made": made, "jobs": len(JOBS), "no_gpu": NO_GPU}
    return environment.get_template(template).render(facts)


def _lines(table: str, results: Mapping[str, Result], reasons: Mapping[str, str]) -> list[Line]:
    lines = []
    for name in (job.name for job in JOBS if job.name.split()[0] == table):
        label = name.removeprefix(f"{table} ")
        if name in results:
            lines += [[label, *cells] for cells in TABLES[table](results[name])]
        else:
            lines.append([label, f"not measured: {reasons.get(name, NO_GPU)}"])
    return lines


def _made(result: Result) -> str:
    """On what a result was made."""
    versions = result.get("versions") or result["runs"][0]["versions"]
    hardware = result.get("hardware") or result["runs"][0]["hardware"]
    return f"{hardware}; commit {result['commit']}; " + ", ".join(f"{n} {v}" for n, v in versions.items())


if __name__ == "__main__":
    main()
