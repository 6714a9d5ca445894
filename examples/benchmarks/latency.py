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
from timing import interleave, ratio, write
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from oialr_peft import OIALRConfig, save_compressed


BATCHES = ((16, 128), (1, 16), (1, 1))


@dataclass
class Settings:
    """Settings of the measurement."""

    shares: list[float] = field(default_factory=lambda: [0.5, 0.25, 0.1], metadata={"help": "Ranks."})
    rounds: int = field(default=25, metadata={"help": "Rounds that count."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, bfloat16."})
    output: str = field(default="results/latency.json", metadata={"help": "Results file."})


def main() -> None:
    """Writes the checkpoints, loads them and times their forward passes in turn."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    kinds = ["dense", *map(str, settings.shares)]
    rows: list[dict[str, Any]] = [{"kind": kind} for kind in kinds]
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in kinds}
        for kind in tqdm(kinds, desc="checkpoints"):
            save(kind, folders[kind])
        sizes = {kind: (folder / "model.safetensors").stat().st_size for kind, folder in folders.items()}
        dtype = getattr(torch, settings.dtype)
        models = {kind: load(folder, settings.device, dtype) for kind, folder in folders.items()}
    for row, kind in zip(rows, kinds, strict=True):
        row["file/dense"] = sizes[kind] / sizes["dense"]
    for sequences, tokens in BATCHES:
        ids = torch.randint(30_000, (sequences, tokens)).to(settings.device)
        with torch.inference_mode():
            runs = {kind: partial(model, ids) for kind, model in models.items()}
            seconds = interleave(runs, settings.rounds, settings.device)
        for row, kind in zip(rows, kinds, strict=True):
            row[f"{sequences}x{tokens}/dense"] = ratio(seconds, kind, "dense")
    write(settings.output, rows)


def save(kind: str, folder: Path) -> None:
    """A BERT of base size, dense or compressed at the given share of the full rank."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    if kind == "dense":
        model.save_pretrained(folder)
    else:
        save_compressed(get_peft_model(model, OIALRConfig(r=float(kind))), folder)


def load(folder: Path, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """The checkpoint's model, ready to run."""
    model: Any = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    return model.to(device, dtype).eval()


if __name__ == "__main__":
    main()
