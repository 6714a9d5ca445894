"""ViT-B/16 or ResNet-50 on ImageNet in its usual folders, dense or with OIALR, through the Trainer.

    torchrun --nproc-per-node 4 imagenet.py --data imagenet --model vit --method oialr --output imagenet-vit

The data is a folder of train/CLASS/*.JPEG and val/CLASS/*.JPEG, or the id of a Hub dataset with such splits. Not run
on ImageNet by us: it was tried on small folders of generated images. The paper's ResNet-RS 101 is in timm alone, which
needs a torchvision built for the same torch; transformers' ResNet-50 stands in for it. The same command with --resume
goes on from the last whole checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from peft import get_peft_model
from PIL import Image
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from oialr_peft import OIALRCallback, OIALRConfig, save_compressed
from oialr_peft.checkpoint import last_complete_checkpoint


MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class View:
    """The transform of a split: a random crop mirrored or not for training, else the middle of the image."""

    def __init__(self, side: int, training: bool) -> None:
        self.side, self.training = side, training

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        pixels = [self._tensor(image.convert("RGB")) for image in batch["image"]]
        return {"pixel_values": pixels, "labels": batch["label"]}

    def _tensor(self, image: Image.Image) -> Tensor:
        box = self._random_box(*image.size) if self.training else _middle(*image.size)
        cut = image.resize((self.side, self.side), Image.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.array(cut)).movedim(-1, 0) / 255
        if self.training and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]

    @staticmethod
    def _random_box(width: int, height: int) -> tuple[float, float, float, float]:
        """A part of 8 to 100 % of the area, its sides up to 3:4 or 4:3."""
        share, ratio = 0.08 + 0.92 * float(torch.rand(())), (4 / 3) ** (2 * float(torch.rand(())) - 1)
        wide = min(width, (share * width * height * ratio) ** 0.5)
        high = min(height, (share * width * height / ratio) ** 0.5)
        left, top = float(torch.rand(())) * (width - wide), float(torch.rand(())) * (height - high)
        return left, top, left + wide, top + high


def _middle(width: int, height: int) -> tuple[float, float, float, float]:
    """The square in the middle, seven eighths of the shorter side."""
    side = 0.875 * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def make_model(name: str, size: str, classes: int, side: int) -> nn.Module:
    """ViT-B/16 or ResNet-50; "tiny" to try the script."""
    given: dict[str, Any] = {"num_labels": classes}
    if name == "vit":
        tiny: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 1}
        sizes: dict[str, Any] = {**tiny, "num_attention_heads": 2} if size == "tiny" else {}
        return ViTForImageClassification(ViTConfig(image_size=side, **given, **sizes))
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]} if size == "tiny" else {}
    return ResNetForImageClassification(ResNetConfig(**given, **sizes))


def top_1(prediction: EvalPrediction) -> dict[str, float]:
    """The share of images that are put into their class."""
    return {"top_1": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


def training_arguments(parsed: argparse.Namespace) -> TrainingArguments:
    """AdamW with a warm-up and a cosine, label smoothing, bfloat16 on a GPU."""
    return TrainingArguments(
        str(parsed.output),
        num_train_epochs=parsed.epochs,
        per_device_train_batch_size=parsed.batch,
        per_device_eval_batch_size=parsed.batch,
        learning_rate=parsed.lr,
        weight_decay=0.05 if parsed.model == "vit" else 1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        label_smoothing_factor=0.1,
        bf16=torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch" if parsed.size == "full" else "no",
        save_total_limit=2,
        dataloader_num_workers=parsed.workers,
        remove_unused_columns=False,  # the columns come into being in the transform
        report_to="none",
        seed=parsed.seed,
    )


def main() -> None:
    """Trains one model, prints its accuracy and writes it, small where it is small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train/ and val/, or a Hub dataset id")
    parser.add_argument("--model", choices=("vit", "resnet"), required=True)
    parser.add_argument("--method", choices=("dense", "oialr"), required=True)
    parser.add_argument("--target-size", type=float, default=0.4, help="OIALR: share of the dense values to end with")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--epochs", type=float, default=90)
    parser.add_argument("--batch", type=int, default=256, help="per process")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in the output")
    parser.add_argument("--output", type=Path, required=True)
    parsed = parser.parse_args()
    set_seed(parsed.seed)
    data: Any = load_dataset("imagefolder", data_dir=parsed.data) if Path(parsed.data).is_dir() else None
    data = data or load_dataset(parsed.data)
    classes = data["train"].features["label"].num_classes
    model: Any = make_model(parsed.model, parsed.size, classes, parsed.side)
    callbacks = []
    if parsed.method == "oialr":
        fields: dict[str, Any] = {"bases": "longer", "target_size": parsed.target_size, "delay": 0.3}
        model = get_peft_model(model, OIALRConfig(train_rest=True, **fields))
        callbacks.append(OIALRCallback(trace=str(parsed.output / "trace.jsonl")))
    trainer = Trainer(
        model,
        training_arguments(parsed),
        train_dataset=data["train"].with_transform(View(parsed.side, training=True)),
        eval_dataset=data["validation"].with_transform(View(parsed.side, training=False)),
        compute_metrics=top_1,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(parsed.output) if parsed.resume else None)
    print(f"top-1 {trainer.evaluate()['eval_top_1']:.4f}")
    if trainer.is_world_process_zero():
        save_compressed(model, parsed.output / "model") if callbacks else model.save_pretrained(
            parsed.output / "model"
        )


if __name__ == "__main__":
    main()
