"""How fast this machine is at SVDs. The only thing in a plan that is measured."""

from __future__ import annotations

import time

import torch

from ..linalg import draw, rotate
from ..workers.plan import svd_cost
from .update import SVD_FLOPS


def measure_svd_gflops(size: int = 512, device: str | torch.device = "cpu") -> float:
    """1e9 of `SVD_FLOPS` x rows x cols x min per second, of the best of three SVDs of a (size, size) matrix."""
    matrix = draw(torch.Generator().manual_seed(0), size, size).to(device)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        rotate(matrix)
        seconds.append(time.perf_counter() - began)
    return SVD_FLOPS * svd_cost((size, size)) / min(seconds) / 1e9
