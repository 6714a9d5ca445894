"""How fast is a compressed model? Forward latency and file size of a BERT of base size against dense.

    python latency.py --output results/latency.json

Both models are loaded from what `save_pretrained` and `save_compressed` wrote.
"""

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from peft import get_peft_model
from timing import compile_in_place, interleave, ratio, write
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from oialr_peft import OIALRConfig, save_compressed


BATCHES = ("16x128", "1x16", "1x1")  # sequences x tokens


@dataclass
class Settings:
    """Settings of the measurement."""

    shares: list[float] = field(default_factory=lambda: [0.5, 0.25, 0.1], metadata={"help": "Ranks."})
    batches: list[str] = field(default_factory=lambda: list(BATCHES), metadata={"help": "Sequences x tokens."})
    layers: int = field(default=12, metadata={"help": "BERT's layers."})
    width: int = field(default=768, metadata={"help": "Of the model."})
    rounds: int = field(default=25, metadata={"help": "Rounds that count."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, bfloat16."})
    compile: str = field(default="", metadata={"help": "Backend or mode of torch.compile; default eager."})
    output: str = field(default="results/latency.json", metadata={"help": "Results file."})


def main() -> None:
    """Writes the checkpoints, loads them and times their forward passes in turn."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    kinds = ["dense", *map(str, settings.shares)]
    rows: list[dict[str, Any]] = [{"kind": kind} for kind in kinds]
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in kinds}
        for kind in tqdm(kinds, desc="checkpoints"):
            save(kind, folders[kind], settings)
        sizes = {kind: (folder / "model.safetensors").stat().st_size for kind, folder in folders.items()}
        models = {kind: load(folder, settings) for kind, folder in folders.items()}
    for row, kind in zip(rows, kinds, strict=True):
        row["file/dense"] = sizes[kind] / sizes["dense"]
    for shape in settings.batches:
        ids = torch.randint(30_000, tuple(map(int, shape.split("x")))).to(settings.device)
        with torch.inference_mode():
            runs = {kind: partial(model, ids) for kind, model in models.items()}
            seconds = interleave(runs, settings.rounds, settings.device)
        for row, kind in zip(rows, kinds, strict=True):
            row[f"{shape}/dense"] = ratio(seconds, kind, "dense")
    write(settings.output, rows)


def save(kind: str, folder: Path, settings: Settings) -> None:
    """A BERT of base size, dense or compressed at the given share of the full rank."""
    torch.manual_seed(0)
    heads, feed = settings.width // 64, 4 * settings.width
    sizes: dict[str, Any] = {"num_hidden_layers": settings.layers, "hidden_size": settings.width}
    config = transformers.BertConfig(**sizes, num_attention_heads=heads, intermediate_size=feed)
    model: Any = transformers.BertModel(config, add_pooling_layer=False)
    model.to(settings.device)
    if kind == "dense":
        model.save_pretrained(folder)
    else:
        save_compressed(get_peft_model(model, OIALRConfig(r=float(kind))), folder)


def load(folder: Path, settings: Settings) -> torch.nn.Module:
    """The checkpoint's model, ready to run."""
    model: Any = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    model.to(settings.device, getattr(torch, settings.dtype)).eval()
    compile_in_place(model, settings.compile)
    return model


if __name__ == "__main__":
    main()
