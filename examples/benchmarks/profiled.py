"""Where does the time of a training step go, and what makes the host wait? The profiler over the steps of step.py.

    python profiled.py --task bert_large --device cuda --dtype bfloat16 --output results/profiled.json

Operators by their own time on the device, as shares of a method's whole; on CUDA also how often a step waits for the
device (a copy to the host is such a wait too). The profiler costs time itself: shares are to be read, not seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from methods import METHODS
from step import step_of
from tasks import TASKS
from timing import compile_in_place, write
from torch.profiler import ProfilerActivity, profile
from transformers import HfArgumentParser


WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass
class Settings:
    """Settings of the measurement."""

    task: str = field(default="bert", metadata={"choices": sorted(TASKS), "help": "Model and data."})
    methods: list[str] = field(
        default_factory=lambda: ["dense", "OIALR 100%", "OIALR 25%"], metadata={"help": "Of methods.py."}
    )
    steps: int = field(default=5, metadata={"help": "Steps that are recorded."})
    operators: int = field(default=10, metadata={"help": "Operators that are named; the rest is summed."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16: autocast."})
    compile: str = field(default="", metadata={"help": "Backend or mode of torch.compile; default eager."})
    output: str = field(default="results/profiled.json", metadata={"help": "Results file."})


def main() -> None:
    """Records a few steps of every method and writes where their time went."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    task = TASKS[settings.task]().on(settings.device)
    rows = []
    for name in settings.methods:
        model, optimizer = METHODS[name](task)
        compile_in_place(model, settings.compile)
        rows += rows_of(name, step_of(task, model, optimizer, cast(Any, settings)), settings)
    write(settings.output, rows)


def rows_of(method: str, step: Any, settings: Settings) -> list[dict[str, Any]]:
    """An operator a row, then all others, each with its share of the method's time and its calls a step."""
    cuda = settings.device != "cpu"
    for _ in range(3):  # allocators and optimizer state
        step()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        for _ in range(settings.steps):
            step()
    time = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = recorded.key_averages()
    waits = (
        sum(event.count for event in events if event.key.startswith(WAITS)) - cuda
    )  # the profiler's own, at its end
    # Kernels and annotations have the time of the operators that launched them once more.
    operators = [e for e in events if e.device_type.name == "CPU" and not getattr(e, "is_user_annotation", False)]
    found = sorted(operators, key=lambda event: -getattr(event, time))
    whole = sum(getattr(event, time) for event in found) or 1
    parts = [(event.key[:80], getattr(event, time) / whole, event.count / settings.steps) for event in found]
    named, others = parts[: settings.operators], parts[settings.operators :]
    named.append(("all others", sum(share for _, share, _ in others), sum(calls for _, _, calls in others)))
    rows = [dict(zip(("operator", "share", "calls"), part, strict=True)) for part in named]
    return [{"method": method, "waits": waits / settings.steps, **row} for row in rows]


if __name__ == "__main__":
    main()
