"""What is measured on a GPU, as data: each job is a script with flags and ends within eight minutes.

In flags, `{device}`, `{output}` (the script's results file), `{work}` (a scratch folder) and `{data}` are filled in.
`tiny` flags take the place of those of the same name, for a run of seconds on a CPU; None takes a flag away.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


sys.path.append(str(Path(__file__).resolve().parents[1] / "autoformer"))
import horizons


Flags = Mapping[str, Any]  # a tuple gives several values


@dataclass(frozen=True)
class Job:
    """A script of examples/ with its flags; `name` is that of its results file.

    `files` must lie in the data folder and `modules` be importable, else the job is left out and its row says why.
    """

    name: str
    script: str
    flags: Flags
    tiny: Flags
    result: str = "{output}"
    files: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    gpus: int = 1

    def arguments(self, tiny: bool, places: Mapping[str, str]) -> list[str]:
        """The command line."""
        words = []
        for name, value in {**self.flags, **(self.tiny if tiny else {})}.items():
            if value is not None:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{name}", *(str(one).format(**places) for one in values)]
        return words


VARIANTS: dict[str, Flags] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "fp32 compiled": {"dtype": "float32", "compile": "default"},
    "bf16 compiled": {"dtype": "bfloat16", "compile": "default"},
}
METHODS = (
    *("dense", "OIALR 100%", "OIALR 25%", "OIALR 100%, rest trained", "OIALR 25%, rest trained"),
    *("plain chain 25%, rest trained", "LoRA r16"),
)


def variants(name: str, script: str, flags: Flags, tiny: Flags, only: tuple[str, ...] = tuple(VARIANTS)) -> list[Job]:
    """One job per precision, eager and compiled."""
    given = {"device": "{device}", "output": "{output}"}
    jobs = []
    for variant in only:
        own: Flags = {**VARIANTS[variant], **flags}
        cheap = {"compile": "eager"} if "compile" in own else {}  # traced and guarded, not compiled
        jobs.append(Job(f"{name} {variant}", f"benchmarks/{script}.py", {**given, **own}, {**tiny, **cheap}))
    return jobs


def measurements() -> Iterator[Job]:
    """Time and memory, on random data."""
    layers = {"rows": 16384, "shapes": ("1024x1024", "4096x1024", "1024x4096", "4096x4096")}
    yield from variants("step", "step", {"task": "bert_large", "methods": METHODS, "rounds": 15}, TINY_STEP)
    yield from variants("layer", "layer", layers, {"rows": 8, "shapes": "32x16", "shares": 0.25, "rounds": 1})
    sizes = {"layers": 24, "sequences": 32, "tokens": 128, "size": "large"}
    tiny = {"layers": 1, "sequences": 2, "tokens": 8, "size": "tiny", "apart": False}
    yield from variants("memory", "process_memory", sizes, tiny, ("fp32", "bf16"))
    yield from variants("updates", "updates", {"task": "bert_large"}, {"task": "bert_tiny", "steps": 3, "updates": 2})
    # Which SVD the updates had better take: no choice is built before a GPU has told.
    tiny = {"shapes": "32x16", "count": 2, "rounds": 1}
    yield Job("svd fp32", "benchmarks/svd.py", {"device": "{device}", "output": "{output}"}, tiny)
    yield from variants("profiled", "profiled", {"task": "bert_large"}, {"task": "bert_tiny", "steps": 1}, ("bf16",))
    tiny = {"width": 64, "blocks": 1, "ranks": 4}
    yield from variants("initialisation", "initialisation", {"whole": True}, tiny, ("fp32", "bf16"))
    tiny = {"shares": 0.25, "rounds": 1, "layers": 1, "width": 64}
    yield from variants("latency", "latency", {}, {**tiny, "batches": "1x1"})
    tiny = {**tiny, "batches": (1, 2), "tokens": 8}
    yield from variants("decode", "decode", {}, tiny, ("fp32", "bf16"))
    # A single token is a matter of launches: mode "reduce-overhead" replays them as a CUDA graph.
    graphs = {"compile": "reduce-overhead"}
    yield from variants("decode", "decode", graphs, {**tiny, "batches": 1}, ("fp32 compiled", "bf16 compiled"))
    task = {"task": "autoformer", "methods": METHODS, "rounds": 15}
    yield from variants("step of Autoformer", "step", task, TINY_STEP, ("fp32",))  # for its Fourier transform


TINY_STEP: Flags = {"task": "bert_tiny", "methods": METHODS[:3], "rounds": 1}


def processes() -> Iterator[Job]:
    """DDP with NCCL, a process per GPU."""
    for count in (1, 2):
        flags = {"processes": count, "device": "{device}", "output": "{output}"}
        yield Job(f"processes {count}", "gpu/processes.py", flags, {"task": "bert_tiny", "steps": 4}, gpus=count)


def quality() -> Iterator[Job]:
    """Time to quality of a model of LLaMA-60M's shape, and the paper's mini-ViT."""
    for method in ("dense", "oialr_size", "oialr_longer", "low_rank", "oialr_sigma"):
        flags = {"method": method, "lr": 0.02, "device": "{device}", "output": "{output}"}
        text = {"text": "{data}/tinyshakespeare/input.txt", "steps": 2000}
        tiny = {"text": None, "steps": 4, "size": "tiny"}
        files = ("tinyshakespeare/input.txt",)
        yield Job(f"llama {method}", "gpu/llama.py", {**flags, **text}, tiny, files=files)
    for seed in (0, 1, 2):
        for method in ("dense", "oialr", "oialr_size"):
            flags = {"method": method, "seed": seed, "device": "{device}", "output": "{output}"}
            tiny = {"data": None, "epochs": 1, "size": "tiny"}
            flags |= {"data": "{data}/cifar10-jpeg", "epochs": 60}
            files = ("cifar10-jpeg/train.parquet", "cifar10-jpeg/test.parquet")
            yield Job(f"vit {method} {seed}", "gpu/vit.py", flags, tiny, files=files, modules=("pandas", "PIL"))


def autoformer() -> Iterator[Job]:
    """The paper's Autoformer by thuml's protocol, with the setting decoded from the authors' figures."""
    common = {"data": "{data}/ETT-small/ETTm2.csv.gz", "d_model": 512, **horizons.PROTOCOL, "output": "{work}"}
    methods = {"dense": "dense", "oialr": "OIALR, the authors' setting"}
    tiny = {"data": None, "d_model": 16, "epochs": 1, "max_steps": 3, "horizon": 8, "delay": 1, "update_interval": 1}
    for seed in horizons.SEEDS:
        for horizon in horizons.HORIZONS:
            for method, name in methods.items():
                own = {**horizons.METHODS[name], "horizon": horizon, "seed": seed}
                yield Job(
                    f"autoformer {horizon} {method} {seed}",
                    "autoformer/run.py",
                    {**common, **own},
                    tiny,
                    result="{work}/results.json",
                    files=("ETT-small/ETTm2.csv.gz",),
                    modules=("datasets", "evaluate", "pandas"),
                )


JOBS: tuple[Job, ...] = (*measurements(), *processes(), *quality(), *autoformer())
