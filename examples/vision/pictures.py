"""CIFAR-10 through HF datasets, from local parquet files or the Hub, as tensors of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Image, load_dataset
from torch import Tensor


Split = tuple[Tensor, Tensor]  # images (count, 3, height, width) as bytes, and their classes
COUNTS = {"train": 20_000, "validation": 4_000, "test": 10_000}


def load_pictures(data: str, counts: dict[str, int] = COUNTS) -> dict[str, Split]:
    """Returns the splits of `counts`; those for validation are the training images after the ones that train.

    Args:
        data: folder of train.parquet and test.parquet, or the id of a dataset on the Hub, such as uoft-cs/cifar10,
            with an image and a class in every row.

    Raises:
        ValueError: a file is absent, a column has no image or class, or there are fewer images than asked for.
    """
    folder = Path(data)
    files = {name: str(folder / f"{name}.parquet") for name in ("train", "test")}
    absent = [path for path in files.values() if folder.is_dir() and not Path(path).is_file()]
    if absent:
        raise ValueError(f"data: the folder must hold train.parquet and test.parquet, {absent} absent; add them.")
    read: Any = load_dataset("parquet", data_files=files) if folder.is_dir() else load_dataset(data)
    ends = {"train": (0, counts["train"]), "test": (0, counts["test"])}
    ends["validation"] = (counts["train"], counts["train"] + counts["validation"])
    return {name: _tensors(read["test" if name == "test" else "train"], *end) for name, end in ends.items()}


def _tensors(rows: Any, begin: int, end: int) -> Split:
    image, label = (
        next((name for name, kind in rows.features.items() if isinstance(kind, wanted)), None)
        for wanted in (Image, ClassLabel)
    )
    if image is None or label is None:
        raise ValueError(f"data: a column of images and one of classes are needed, got {rows.features}; cast them.")
    if len(rows) < end:
        raise ValueError(f"data: {end} images are asked for, got {len(rows)}; lower the counts.")
    chosen = rows.select(range(begin, end))
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in chosen[image]])
    return torch.from_numpy(pixels).movedim(-1, 1).contiguous(), torch.tensor(chosen[label])
