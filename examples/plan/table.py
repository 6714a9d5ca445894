"""Writes README.md: plans of 8B- and 70B-class models on 8 to 1,024 processes. `python examples/plan/table.py`"""

from __future__ import annotations

from pathlib import Path

from oialr_peft.plan.numbers import Architecture, Plan, architecture, meta_model, plan_run
from oialr_peft.plan.update import SVD_FLOPS, UpdatePlan
from oialr_peft.units import short


FOLDER = Path(__file__).parent
MODELS = {"llama-8b": "8B class", "llama-70b": "70B class"}
PROCESSES = (8, 64, 256, 1024)
RANK, INTERVAL, SVD_GFLOPS = 0.25, 400, 1000.0


def plans(model: Architecture, from_scratch: bool) -> list[Plan]:
    """A plan for each number of processes."""
    options = {"rank": RANK, "update_interval": INTERVAL, "svd_gflops": SVD_GFLOPS}
    return [plan_run(model, processes, from_scratch=from_scratch, **options) for processes in PROCESSES]


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def updates(found: list[UpdatePlan]) -> str:
    """Work and bytes of an update, by number of processes."""
    rows = [["processes", "slowest process", "imbalance", "with work", "seconds", "sent", "held at once"]]
    rows[0].append("largest message")
    for update in found:
        flops = update.svd_flops
        row = [f"{len(flops):,}", short(max(flops), "FLOP"), f"{update.imbalance:.2f}"]
        row += [f"{sum(map(bool, flops)):,}", f"{update.seconds:,.2f}"]
        rows.append([*row, *map(short, (update.bytes_sent, update.bytes_held, update.largest_message))])
    return markdown(rows)


def steps(tuning: list[Plan], scratch: list[Plan]) -> str:
    """What a process sends per step, by number of processes."""
    rows = [["processes", "dense DDP", "from scratch", "fine-tuning", "of it updates"]]
    for mine, other in zip(tuning, scratch, strict=True):
        update = mine.update.bytes_sent / INTERVAL
        gradients = (mine.dense_step_bytes, other.step_bytes, mine.step_bytes)
        dense, low, lowest = (mine.ring_factor * count for count in gradients)
        rows.append([f"{mine.processes:,}", *map(short, (dense, low + update, lowest + update, update))])
    return markdown(rows)


def memory(tuning: Plan, scratch: Plan) -> str:
    """What a process holds; the same for every number of processes above one."""
    kinds = ["weights", "factors", "gradients", "buckets", "moments", "total"]
    held = {"dense": scratch.dense_memory, "from scratch": scratch.memory, "fine-tuning": tuning.memory}
    return markdown(
        [["", *kinds], *([name, *(short(getattr(it, kind)) for kind in kinds)] for name, it in held.items())]
    )


def chapter(model: str) -> str:
    """The tables of one model."""
    dense = architecture(meta_model(str(FOLDER / model)), model)
    tuning, scratch = plans(dense, False), plans(dense, True)
    first, alone = scratch[0], tuning[0].factorisation
    parts = [
        f"## {MODELS[model]}: {first.parameters / 1e9:.2f}e9 parameters, {first.layers} layers factored",
        f"Memory per process at {RANK:.0%} rank:",
        memory(tuning[0], first),
        "A process sends per step:",
        steps(tuning, scratch),
        f"An update at {RANK:.0%} rank:",
        updates([plan.update for plan in scratch]),
        "The factorisation, from scratch:",
        updates([plan.factorisation for plan in scratch]),
        "The factorisation, fine-tuning: every process for itself at injection, "
        f"{short(alone.svd_flops[0], 'FLOP')} or {alone.seconds:,.0f} seconds each; nothing is sent.",
    ]
    return "\n\n".join(parts)


def readme() -> str:
    """The whole file."""
    text = (FOLDER / "text.md").read_text(encoding="utf-8")
    values = {"rank": f"{RANK:.0%}", "interval": INTERVAL, "gflops": f"{SVD_GFLOPS:,.0f}", "factor": SVD_FLOPS}
    return text.format(**values, tables="\n\n".join(map(chapter, MODELS)))


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(readme(), encoding="utf-8")
