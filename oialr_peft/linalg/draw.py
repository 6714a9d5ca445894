"""Random numbers that depend on their seed alone."""

from __future__ import annotations

import torch


def draw(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal numbers on the CPU: the same for every device, and whatever torch's defaults are."""
    return torch.randn(*shape, generator=generator, dtype=dtype, device="cpu")
