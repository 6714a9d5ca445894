"""A plan as a table to read."""

from __future__ import annotations

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ..units import short
from .numbers import Plan
from .update import BYTES, SVD_FLOPS, UpdatePlan


def plan_table(plan: Plan) -> Group:
    """The tables of a plan, for rich's `print`."""
    return Group(_svds(plan), _traffic(plan), _memory(plan))


def _svds(plan: Plan) -> Table:
    how = "shared" if plan.from_scratch else "at injection, by every process for itself"
    table = Table(
        title=f"{escape(plan.model)}: {plan.layers} layers on {plan.processes} processes, {plan.bases} bases",
        caption=f"Factorisation: {how}. Update: all layers due, nothing cut. Work: {SVD_FLOPS} x rows x cols x min "
        f"per SVD; seconds: at {plan.svd_gflops:,.4g} GFLOP/s per process, waiting for the slowest of every round, "
        "without moving bases and moments. Imbalance: slowest over mean. Held: beside the model, by the fullest "
        "process. Largest message: the longest wait inside a collective is for these bytes, never for an SVD.",
        caption_justify="left",
    )
    table.add_column("SVDs")
    table.add_column("factorisation, full rank", justify="right")
    table.add_column(f"update at {plan.rank:.0%} rank", justify="right")
    columns = [_update_cells(update) for update in (plan.factorisation, plan.update)]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    return table


def _update_cells(update: UpdatePlan) -> dict[str, str]:
    processes = len(update.svd_flops)
    return {
        "slowest process": short(max(update.svd_flops), "FLOP"),
        "mean": short(sum(update.svd_flops) / processes, "FLOP"),
        "imbalance": f"{update.imbalance:.2f}",
        "with work": f"{sum(map(bool, update.svd_flops)):,} of {processes:,}",
        "seconds": f"{update.seconds:,.3f}",
        "sent": short(update.bytes_sent),
        "held at once": short(update.bytes_held),
        "largest message": short(update.largest_message),
    }


def _traffic(plan: Plan) -> Table:
    factor, per_update = plan.ring_factor, plan.update.bytes_sent / plan.update_interval
    table = Table(
        title="Bytes per step",
        caption=f"Sent by a process, in rings: gradients x 2 (N - 1) / N = {factor:.3f}, and an update's bytes "
        f"once at most, spread over {plan.update_interval} steps. Not counted: DDP's own small messages, the "
        "model's buffers.",
        caption_justify="left",
    )
    table.add_column("")
    for heading in ("gradients reduced", "updates, per step", "sent by a process"):
        table.add_column(heading, justify="right")
    for label, gradients, update in (
        (f"OIALR at {plan.rank:.0%} rank", plan.step_bytes, per_update),
        ("dense DDP", plan.dense_step_bytes, 0),
    ):
        table.add_row(label, *map(short, (gradients, update, factor * gradients + update)))
    return table


def _memory(plan: Plan) -> Table:
    table = Table(
        title="Memory per process",
        caption="Float32 under DDP and Adam, activations apart. Weights: what is not factored"
        f"{'' if plan.from_scratch else ' and the base, which is kept'}. Buckets: DDP's copies of the gradients, "
        "saved by gradient_as_bucket_view=True.",
        caption_justify="left",
    )
    table.add_column("")
    names = ("weights", "factors", "gradients", "buckets", "moments", "total")
    for heading in names:
        table.add_column(heading, justify="right")
    size, embeddings = BYTES * plan.compressed, BYTES * plan.embeddings
    table.caption = (
        f"{table.caption} In a file, compressed: {short(size)}, {plan.compressed / plan.parameters:.0%} of the dense "
        f"model's {short(BYTES * plan.parameters)}, of it embeddings {short(embeddings)}."
    )
    for label, memory in ((f"OIALR at {plan.rank:.0%} rank", plan.memory), ("dense", plan.dense_memory)):
        table.add_row(label, *(short(getattr(memory, name)) for name in names))
    return table
