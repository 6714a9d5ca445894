"""Is a compressed model right, small and quick as an ONNX file? A BERT of base size under onnxruntime, on one thread.

    python measure.py --output results/onnx.json

Weights are random. Both models are loaded from what `save_pretrained` and `save_compressed` wrote, exported by
export.py, and compared with what torch computes from the same file.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import onnx
import onnxruntime
import torch
from export import to_onnx, to_program
from tqdm.auto import tqdm
from transformers import HfArgumentParser


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from latency import load, save
from timing import interleave, ratio, ratios, write


@dataclass
class Settings:
    """Settings of the measurement."""

    shares: list[float] = field(default_factory=lambda: [0.5, 0.25, 0.1], metadata={"help": "Ranks."})
    batches: list[str] = field(default_factory=lambda: ["1x16", "16x128"], metadata={"help": "Sequences x tokens."})
    layers: int = field(default=12, metadata={"help": "BERT's layers."})
    width: int = field(default=768, metadata={"help": "Of the model."})
    rounds: int = field(default=25, metadata={"help": "Rounds that count."})
    output: str = field(default="results/onnx.json", metadata={"help": "Results file."})
    device: str = field(default="cpu", init=False)
    dtype: str = field(default="float32", init=False)
    compile: str = field(default="", init=False)


def main() -> None:
    """Writes, exports and compares each model, then times their sessions in turn."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    torch.set_num_threads(1)
    kinds = ["dense", *map(str, settings.shares)]
    rows: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        files = {kind: Path(name) / f"{kind}.onnx" for kind in kinds}
        for kind in tqdm(kinds, desc="exports"):
            rows[kind] |= exported(kind, files[kind], settings)
        sessions = {kind: session(file) for kind, file in files.items()}
    for row in rows.values():
        row["bytes/dense"] = row["bytes"] / rows["dense"]["bytes"]
    for shape in settings.batches:
        batch = some_batch(shape)
        runs = {kind: partial(it.run, None, batch) for kind, it in sessions.items()}
        seconds = interleave(runs, settings.rounds)
        for kind, row in rows.items():
            figures = ratios(seconds, kind, "dense")
            row |= {f"{shape}/dense": ratio(seconds, kind, "dense"), f"{shape} least": min(figures)}
            row |= {f"{shape} most": max(figures), f"{shape}, ms": 1000 * sorted(seconds[kind])[settings.rounds // 2]}
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    write(settings.output, list(rows.values()), serving=versions, rounds=settings.rounds, batches=settings.batches)


def exported(kind: str, file: Path, settings: Any) -> dict[str, Any]:
    """Writes the model as ONNX; its bytes, its matrix products and the largest difference from torch's outputs.

    Products are those with a weight, in the file and in what onnxruntime makes of it. The outputs are the last hidden
    states of every position, of two batches with padding; those of the torch.export program are compared too.
    """
    folder, optimised = file.with_suffix(""), file.with_suffix(".optimised.onnx")
    save(kind, folder, settings)
    model = load(folder, settings)
    to_onnx(cast(Any, model), file)
    to_program(cast(Any, model), file.with_suffix(".pt2"))
    held, program = session(file, optimised), torch.export.load(file.with_suffix(".pt2")).module()
    differences = {"difference": 0.0, "program difference": 0.0}
    for shape in settings.batches:
        batch = some_batch(shape)
        tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
        with torch.inference_mode():
            expected, again = model(**tensors)[0], program(**tensors)[0]
        found = torch.from_numpy(cast(Any, held.run(None, batch)[0]))
        for name, one in (("difference", found), ("program difference", again)):
            differences[name] = max(differences[name], float((one - expected).abs().max()))
    sizes = {"bytes": file.stat().st_size, "program bytes": file.with_suffix(".pt2").stat().st_size}
    return {**sizes, **differences, "products": products(file), "products when run": products(optimised)}


def session(file: Path, optimised: Path | None = None) -> onnxruntime.InferenceSession:
    """onnxruntime's, on one thread; its optimised graph is written where a place for it is named."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # that an optimised graph may suit this machine alone
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def products(file: Path) -> int:
    """How many matrix products with a weight the graph has."""
    graph = onnx.load(file).graph
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    multiply = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
    return sum(node.op_type in multiply and not weights.isdisjoint(node.input) for node in graph.node)


def some_batch(shape: str) -> dict[str, Any]:
    """Random tokens, of which the last quarter of the first sequence is padding."""
    ids = torch.randint(30_000, tuple(map(int, shape.split("x"))), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -(ids.shape[1] // 4) :] = 0
    return {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


if __name__ == "__main__":
    main()
