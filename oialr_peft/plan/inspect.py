"""What a cut would save, before anything is trained: `oialr inspect MODEL`."""

from __future__ import annotations

import math
from collections import Counter

from rich.markup import escape
from rich.table import Table

from ..config import OIALRConfig
from ..linalg import stored_size
from ..policy.ranks import floor_rank
from ..units import short
from .numbers import Architecture
from .update import BYTES


SHARES = (0.5, 0.25, 0.1)  # ranks that are shown, as shares of the full one


def inspect_table(model: Architecture) -> Table:
    """The layers that OIALR takes, alike ones in a row, and the size of the compressed file at some ranks.

    Sizes are those of float32 files. A layer whose two factors would be no smaller counts as dense. The caption has
    the least `target_size`: all layers at the lowest rank that `min_rank` leaves them.
    """
    lowest = OIALRConfig().min_rank
    rest = model.stored - sum(map(math.prod, model.shapes.values()))
    least = rest + sum(stored_size(s, floor_rank(min(s[-2:]), lowest)) for s in model.shapes.values())
    table = Table(
        title=f"{escape(model.name)}: {short(BYTES * model.stored)} in float32",
        caption="Size of the file that `save_compressed` would write, with all layers at a share of their full rank. "
        f"The least that `target_size` can ask for is {math.ceil(1000 * least / model.stored) / 1000:g}.",
        caption_justify="left",
    )
    table.add_column("layers", overflow="fold")
    for heading in ("count", "shape", "dense", "of the model", *(f"ranks at {share:.0%}" for share in SHARES)):
        table.add_column(heading, justify="right", no_wrap=heading == "shape")  # half of a shape says nothing
    alike = Counter((name.rpartition(".")[2], shape) for name, shape in model.shapes.items())
    for (name, shape), count in alike.items():
        own = count * math.prod(shape)
        sizes = [count * _size(shape, share) for share in SHARES]
        table.add_row(escape(name), str(count), "x".join(map(str, shape)), *_cells(own, sizes, model.stored))
    for name, values in (("embeddings", model.embeddings), ("the rest", rest - model.embeddings)):
        last = name == "the rest"
        table.add_row(name, "", "", *_cells(values, [values] * len(SHARES), model.stored), end_section=last)
    whole = [rest + sum(_size(shape, share) for shape in model.shapes.values()) for share in SHARES]
    table.add_row("all", "", "", *_cells(model.stored, whole, model.stored))
    table.add_row("", "", "", "", "", *(f"{size / model.stored:.0%} of dense" for size in whole))
    return table


def _size(shape: tuple[int, ...], share: float) -> int:
    return stored_size(shape, max(1, round(share * min(shape[-2:]))))


def _cells(dense: int, sizes: list[int], total: int) -> list[str]:
    return [short(BYTES * dense), f"{dense / total:.0%}", *(short(BYTES * size) for size in sizes)]
