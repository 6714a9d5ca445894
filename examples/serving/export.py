"""A compressed text encoder or classifier as an ONNX file, or as a program of torch.export.

    python export.py small model.onnx     # or model.pt2

Nothing here is ours but the import: a compressed model is made of plain layers, two in the place of one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

import oialr_peft  # noqa: F401  (without it compressed models do not load)


def main() -> None:
    """Loads the folder's model by the class that its config names, and writes the file."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, path = Path(sys.argv[1]), Path(sys.argv[2])
    import transformers

    config: Any = AutoConfig.from_pretrained(folder)
    name = config.architectures[0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    (to_program if path.suffix == ".pt2" else to_onnx)(model, path)


def to_onnx(model: PreTrainedModel, path: Path) -> None:
    """Batch and length are free; the weights are in the file, which ONNX allows up to 2 GB."""
    free: Any = {name: {0: "batch", 1: "length"} for name in inputs()}
    program: Any = torch.onnx.export(model, (), kwargs=inputs(), dynamic_shapes=free, dynamo=True, verbose=False)
    program.save(path, external_data=False)


def to_program(model: PreTrainedModel, path: Path) -> None:
    """As `to_onnx`, for torch itself: `torch.export.load(path).module()` needs neither transformers nor oialr_peft."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=model.config.max_position_embeddings)
    free = {name: {0: batch, 1: length} for name in inputs()}
    torch.export.save(torch.export.export(model, (), inputs(), dynamic_shapes=free), path)


def inputs() -> dict[str, torch.Tensor]:
    """An example of what goes in; sizes of one would be taken for fixed ones."""
    return {"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.ones(2, 8, dtype=torch.long)}


if __name__ == "__main__":
    main()
