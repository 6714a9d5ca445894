"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (UCI, Alpaydin and Kaynak): no download."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits


class Images(torch.utils.data.Dataset):
    """Images (count, 1, 8, 8) and their digits."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


class Digits:
    """`train`, `validation` (settings were chosen on it) and `test` (only reported): 60, 15 and 25 %, by the seed."""

    def __init__(self, seed: int) -> None:
        data: Any = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
        labels = torch.tensor(data.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        ends = [int(share * len(labels)) for share in (0.6, 0.75)]
        parts = (order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :])
        self.train, self.validation, self.test = (Images(images[part], labels[part]) for part in parts)

    def trivial(self) -> dict[str, float]:
        """Test accuracy of the most frequent digit, and of the nearest mean image."""
        means = torch.stack([self.train.images[self.train.labels == digit].mean(0) for digit in range(10)])
        nearest = torch.cdist(self.test.images.flatten(1), means.flatten(1)).argmin(1)
        guesses = {"the most frequent digit": self.train.labels.mode().values, "the nearest mean image": nearest}
        return {name: float((self.test.labels == guess).float().mean()) for name, guess in guesses.items()}


@torch.no_grad()
def evaluate(model: Any, images: Images) -> float:
    """The share of the images that are read right."""
    return float((model(images.images).logits.argmax(1) == images.labels).float().mean())
