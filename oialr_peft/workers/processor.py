"""Whether processes compute alike: what their processors are, and what is set for them."""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

import torch


_SETTINGS = ("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def fingerprint() -> dict[str, Any]:
    """What decides in which order a product is summed; where it differs, equal bytes give results that differ."""
    found = {
        "processor": _model_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return {**found, **{name: os.environ.get(name) for name in _SETTINGS}}


def host() -> str:
    return socket.gethostname()


def _model_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
