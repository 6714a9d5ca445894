"""The paper's mini-ViT on CIFAR-10, dense or with OIALR from scratch.

    python vit.py --data cifar10-jpeg --method oialr --device cuda --output vit.json

Patch 8, depth 6, 6 heads, width 768, no bias of queries, keys and values; AdamW, cosine with warm-up, crops and flips,
label smoothing, bfloat16 on a GPU. Without --data images are random, which tries the code and nothing else.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from oialr_peft import OIALRConfig, OIALRUpdater


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from memory import parameter_bytes
from timing import now, write


SIZES: dict[str, dict[str, int]] = {
    "paper": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 6},
    "medium": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "small": {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6},
    "tiny": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2},
}
OIALR: dict[str, dict[str, Any]] = {
    # the authors' untuned setting for CIFAR-10, as shares of their 300 epochs of 49 steps
    "oialr": {"delay": 0.17, "update_interval": 0.034, "sigma_cutoff": 0.15, "layer_step": 0.1},
    # that of docs/from_scratch.md, at 30 %
    "oialr_size": {"bases": "longer", "target_size": 0.3, "delay": 0.3},
}
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)

Split = tuple[Tensor, Tensor]


def make_model(size: str) -> ViTForImageClassification:
    """The untrained model for images of 32 by 32."""
    shape: Any = {"image_size": 32, "patch_size": 8, "num_labels": 10, "qkv_bias": False, **SIZES[size]}
    return ViTForImageClassification(ViTConfig(**shape))


def load_split(folder: Path | None, name: str, device: str) -> Split:
    """Images (count, 3, 32, 32) as bytes, and their classes."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (64, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return images.to(device), torch.arange(64, device=device) % 10
    import pandas  # with pyarrow
    from PIL import Image

    table = pandas.read_parquet(folder / f"{name}.parquet")
    image, label = table.columns[:2]
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table[image]]
    classes = torch.tensor(table[label].to_numpy(copy=True), device=device)
    return torch.from_numpy(np.stack(pixels)).movedim(-1, 1).to(device), classes


def normalised(images: Tensor) -> Tensor:
    """Bytes to numbers of mean 0 and deviation 1 per channel of the training images."""
    mean, deviation = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, DEVIATION))
    return (images / 255 - mean) / deviation


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to four pixels, half of them mirrored."""
    count, device = len(images), images.device
    padded = F.pad(images, (4, 4, 4, 4))
    draws = [torch.randint(9, (count, 1), generator=generator).to(device) for _ in range(2)]
    rows, cols = (draw + torch.arange(32, device=device) for draw in draws)
    mirrored = (torch.rand(count, 1, generator=generator) < 0.5).to(device)
    cols = torch.where(mirrored, cols.flip(1), cols)
    every = torch.arange(count, device=device)[:, None, None]
    return padded.movedim(1, -1)[every, rows[:, :, None], cols[:, None, :]].movedim(-1, 1)


def batches(split: Split, size: int, seed: int) -> Iterator[Split]:
    """Shuffled epochs without end; the last, incomplete batch of each is left out."""
    images, classes = split
    if len(images) < size:
        raise ValueError(f"batch: at most the {len(images)} images to train, got {size}; lower it.")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for chosen in order.split(size)[: len(images) // size]:
            yield augmented(images[chosen], generator), classes[chosen]


def scores(model: nn.Module, images: Tensor) -> Tensor:
    """The class scores of images in bytes; in bfloat16 where a GPU makes it worth the casts."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        return model(pixel_values=normalised(images)).logits.float()


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """The share of images that are put into their class."""
    model.eval()
    pairs = zip(*(part.split(512) for part in split), strict=True)
    right = [(scores(model, images).argmax(1) == classes).float() for images, classes in pairs]
    model.train()
    return float(torch.cat(right).mean())


def train(parsed: argparse.Namespace, data: dict[str, Split]) -> tuple[nn.Module, list[list[float]]]:
    """The trained model, and [epoch, seconds, test accuracy, trainable values] after every tenth of the run."""
    torch.manual_seed(parsed.seed)
    model: Any = make_model(parsed.size).to(parsed.device)
    per_epoch = len(data["train"][0]) // parsed.batch
    steps = per_epoch * parsed.epochs
    if parsed.method in OIALR:
        model = get_peft_model(model, OIALRConfig(train_rest=True, **OIALR[parsed.method]))
    curve, seconds, began = [], 0.0, now(parsed.device)
    for step in training(model, data["train"], parsed.lr, steps, parsed.batch, parsed.seed):
        if step % max(1, steps // 10) == 0:
            seconds += now(parsed.device) - began
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            curve.append([step / per_epoch, seconds, accuracy(model, data["test"]), trained])
            began = time.perf_counter()
    return model, curve


def training(model: Any, split: Split, lr: float, steps: int, batch: int, seed: int) -> Iterator[int]:
    """Train by AdamW, and OIALR's updates where the model has its adapter; the number of every step that was made."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    updater = OIALRUpdater(model, optimizer, total_steps=steps) if hasattr(model, "peft_config") else None
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step / steps))
    for step, (images, classes) in zip(range(1, steps + 1), batches(split, batch, seed)):  # noqa: B905
        F.cross_entropy(scores(model, images), classes, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if updater is not None:
            updater.step()
        rate.step()
        optimizer.zero_grad()
        yield step


def rate_at(progress: float) -> float:
    """Warm-up over a thirtieth of the run, then a cosine to a thirtieth of the rate."""
    return min(30 * progress + 1e-3, 1 / 30 + 29 / 30 * 0.5 * (1 + math.cos(math.pi * progress)))


def main() -> None:
    """Trains one model and writes its curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="folder with train.parquet and test.parquet")
    parser.add_argument("--method", choices=("dense", *OIALR), required=True)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=None, help="default 256, without data 16")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", required=True)
    parsed = parser.parse_args()
    parsed.batch = parsed.batch or (256 if parsed.data else 16)
    data = {name: load_split(parsed.data, name, parsed.device) for name in ("train", "test")}
    model, curve = train(parsed, data)
    dense = sum(p.numel() for p in make_model(parsed.size).parameters())
    facts = {"method": parsed.method, "seed": parsed.seed, "curve": curve, "accuracy": curve[-1][2]}
    write(parsed.output, [], **facts, trainable_share=curve[-1][3] / dense, **parameter_bytes(model))


if __name__ == "__main__":
    main()
