"""One run of one method: the curve of its loss over steps and over seconds, as JSON.

python run.py --text input.txt --method oialr_longer --lr 0.02 --seed 0 --output results/longer_0.02_0.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpt import GPT, SIZES, Text
from methods import Settings, Trained, dense, low_rank, oialr
from torch import nn

import oialr_peft


METHODS = {
    "dense": dense,
    "low_rank": low_rank,
    "oialr_sigma": partial(oialr, bases="frozen", delay=0.3, update_interval=0.05),
    "oialr_longer": partial(oialr, bases="longer", delay=0.3, update_interval=0.05),
    "oialr_longer_then_sigma": partial(oialr, bases="longer", freeze_bases=0.65, delay=0.3, update_interval=0.05),
}


def train(
    method: str, task: Text, settings: Settings, seed: int, points: int = 10, make: Callable[..., nn.Module] = GPT
) -> dict[str, Any]:
    """Train from the seed's weights on the seed's batches; everything a table needs, in plain numbers."""
    torch.manual_seed(seed)
    trained = METHODS[method](make(task.size, task.vocabulary).to(task.train.device), settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(trained.optimizer, partial(_rate, steps=settings.steps))
    curve, seconds, sizes = [], 0.0, []
    for step, (tokens, following) in zip(range(1, settings.steps + 1), task.batches(seed)):  # noqa: B905
        began = time.perf_counter()
        _step(trained, tokens, following)
        schedule.step()
        if tokens.is_cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - began
        sizes.append(sum(p.numel() for p in trained.model.parameters() if p.requires_grad))
        if step % max(1, settings.steps // points) == 0:
            curve.append([step, seconds, task.loss(trained.model, "validation")])
            if not math.isfinite(curve[-1][-1]):
                break
    later = sizes[len(sizes) // 2 :]
    return {
        "curve": curve,
        "validation": curve[-1][-1],
        "test": task.loss(trained.model, "test"),
        "held": _held(trained.model),
        "trained_at_once": max(sizes),
        "trained_in_second_half": sum(later) / len(later),
    }


def _step(trained: Trained, tokens: torch.Tensor, following: torch.Tensor) -> None:
    loss = F.cross_entropy(trained.model(tokens).mT, following)
    loss.backward()
    nn.utils.clip_grad_norm_(trained.model.parameters(), 1.0)
    trained.optimizer.step()
    trained.after_step()
    trained.optimizer.zero_grad()


def _rate(step: int, steps: int) -> float:
    """Warm-up over a tenth, then a cosine to a tenth of the rate."""
    warm = steps / 10
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _held(model: nn.Module) -> int:
    """Values that the model holds, factors and frozen bases included."""
    factors = [b for name, b in model.named_buffers() if "oialr_" in name]
    return sum(t.numel() for t in {id(t): t for t in (*model.parameters(), *factors)}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="TinyShakespeare's input.txt")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--rank", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(parsed.lr, parsed.rank, parsed.steps, parsed.optimizer)
    task = Text(parsed.text, SIZES[parsed.size], parsed.device)
    found = train(parsed.method, task, settings, parsed.seed)
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    given = {k: v for k, v in vars(parsed).items() if k not in ("text", "output")}
    versions = {"torch": torch.__version__, "oialr_peft": oialr_peft.__version__, "machine": platform.processor()}
    parsed.output.write_text(json.dumps({**given, **found, "versions": versions}, indent=1) + "\n")
    print(f"{parsed.method} lr {parsed.lr} seed {parsed.seed}: {found['validation']:.4f}")


if __name__ == "__main__":
    main()
