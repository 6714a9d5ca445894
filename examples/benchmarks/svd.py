"""Which SVD is quickest, one by one, at once, or from two threads? Per matrix, against torch's choice.

    python svd.py --output results/svd.json
    python svd.py --device cuda --output results/svd.json

Matrices with the spectrum 1 / i, in float32. On CUDA the drivers of cuSOLVER and LAPACK on the host are ways too, and
two threads have a stream each; the error is the largest of || A - U S Vᵀ || / || A ||.
torch's choice on CUDA is gesvdj, then gesvd.
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


Factors = tuple[Tensor, ...]  # U, S, Vᵀ


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


def one_by_one(matrices: Tensor, driver: str | None = None) -> list[Factors]:
    """U, S and Vᵀ of each."""
    return [torch.linalg.svd(one, full_matrices=False, driver=driver) for one in matrices]


def at_once(matrices: Tensor) -> list[Factors]:
    """The same from one call."""
    return list(zip(*torch.linalg.svd(matrices, full_matrices=False), strict=True))


def on_the_host(matrices: Tensor) -> list[Factors]:
    """Each goes to LAPACK and its factors come back, as an update would have it."""
    found = [torch.linalg.svd(one.cpu(), full_matrices=False) for one in matrices]
    return [tuple(part.to(matrices.device) for part in factors) for factors in found]


def from_two_threads(matrices: Tensor) -> list[Factors]:
    """Half of them from each thread, on CUDA each on a stream of its own."""

    def half(part: Tensor) -> list[Factors]:
        with torch.cuda.stream(torch.cuda.Stream() if part.is_cuda else None):  # type: ignore[arg-type]
            found = one_by_one(part)
            torch.cuda.current_stream().synchronize() if part.is_cuda else None
        return found

    with ThreadPoolExecutor(2) as threads:
        return [found for part in threads.map(half, matrices.chunk(2)) for found in part]


def error_of(matrices: Tensor, found: list[Factors]) -> float:
    """The largest relative error of what the factors multiply to."""
    errors = [(one - u * s @ vh).norm() / one.norm() for one, (u, s, vh) in zip(matrices, found, strict=True)]
    return float(torch.stack(errors).max())


def ways(device: str) -> dict[str, Callable[[Tensor], list[Factors]]]:
    """By name, what is compared; torch's choice first."""
    both: dict[str, Callable[[Tensor], list[Factors]]] = {
        "default": one_by_one,
        "at once": at_once,
        "two threads": from_two_threads,
    }
    if device == "cpu":
        return both
    drivers = {name: partial(one_by_one, driver=name) for name in ("gesvd", "gesvda")}
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
        for way, run in compared.items():
            row = {"shape": name, "way": way, "ms": 1000 * median(seconds[way]) / settings.count}
            figures = {"time/default": ratio(seconds, way, "default"), "error": error_of(matrices, run(matrices))}
            rows.append({**row, **figures})
    write(settings.output, rows)


if __name__ == "__main__":
    main()
