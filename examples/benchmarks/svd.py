"""Which SVD is quickest, one by one, at once, or from two threads? Per matrix, against torch's choice.

    python svd.py --output results/svd.json
    python svd.py --device cuda --output results/svd.json

Matrices with the spectrum 1 / i, in float32. On CUDA the drivers of cuSOLVER and LAPACK on the host are ways too, and
two threads have a stream each; the error is the largest over the singular values, relative to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, cast

import torch
from timing import interleave, ratio, write
from torch import Tensor
from tqdm.auto import tqdm
from transformers import HfArgumentParser


@dataclass
class Settings:
    """Settings of the measurement."""

    shapes: list[str] = field(
        default_factory=lambda: ["256x256", "768x768", "1024x1024", "4096x1024"], metadata={"help": "Rows x cols."}
    )
    count: int = field(default=4, metadata={"help": "Matrices of a shape."})
    rounds: int = field(default=5, metadata={"help": "Rounds that count."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    output: str = field(default="results/svd.json", metadata={"help": "Results file."})


def decaying(shape: tuple[int, int], count: int, device: str) -> Tensor:
    """`count` matrices with singular values 1 / i and random bases."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(count, side, min(shape), generator=generator)).Q for side in shape)
    return (left / torch.arange(1.0, min(shape) + 1) @ right.mT).to(device)


def one_by_one(matrices: Tensor, driver: str | None = None) -> Tensor:
    """Singular values of all; the bases are found too, as an update wants them."""
    return torch.stack([torch.linalg.svd(one, full_matrices=False, driver=driver).S for one in matrices])


def on_the_host(matrices: Tensor) -> Tensor:
    """Each goes to LAPACK and its factors come back, as an update would have it."""
    found = [torch.linalg.svd(one.cpu(), full_matrices=False) for one in matrices]
    return torch.stack([[part.to(matrices.device) for part in factors][1] for factors in found])


def from_two_threads(matrices: Tensor) -> Tensor:
    """Half of them from each thread, on CUDA each on a stream of its own."""

    def half(part: Tensor) -> Tensor:
        with torch.cuda.stream(torch.cuda.Stream() if part.is_cuda else None):  # type: ignore[arg-type]
            found = one_by_one(part)
            torch.cuda.current_stream().synchronize() if part.is_cuda else None
        return found

    with ThreadPoolExecutor(2) as threads:
        return torch.cat(list(threads.map(half, matrices.chunk(2))))


def ways(device: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name, what is compared; torch's choice first."""
    both: dict[str, Callable[[Tensor], Tensor]] = {
        "default": one_by_one,
        "at once": lambda matrices: torch.linalg.svd(matrices, full_matrices=False).S,
        "two threads": from_two_threads,
    }
    if device == "cpu":
        return both
    drivers = {name: partial(one_by_one, driver=name) for name in ("gesvdj", "gesvd", "gesvda")}
    return {**both, **drivers, "on the host": on_the_host}


def main() -> None:
    """Times every way at every shape and writes the ratios."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    rows = []
    for name in tqdm(settings.shapes, desc="shapes"):
        shape = cast(tuple[int, int], tuple(map(int, name.split("x"))))
        matrices = decaying(shape, settings.count, settings.device)
        compared = ways(settings.device)
        seconds = interleave(
            {w: partial(run, matrices) for w, run in compared.items()}, settings.rounds, settings.device
        )
        exact = 1 / torch.arange(1.0, min(shape) + 1)
        for way, run in compared.items():
            row = {"shape": name, "way": way, "ms": 1000 * median(seconds[way]) / settings.count}
            error = float((run(matrices).cpu() - exact).abs().max())
            rows.append({**row, "time/default": ratio(seconds, way, "default"), "error": error})
    write(settings.output, rows)


if __name__ == "__main__":
    main()
