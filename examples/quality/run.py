"""One run of one method on one task: the curve of its loss over steps and over seconds, as JSON.

python run.py --data DATA --task characters --method oialr_longer --lr 0.02 --seed 0 --output found.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from methods import Settings, Trained, dense, oialr, sized
from peers import galore, low_rank, low_rank_late, merged_lora
from tasks import TASKS
from torch import nn

import oialr_peft


OIALR = partial(oialr, delay=0.3, update_interval=0.05)
SIZED = partial(sized, delay=0.3, update_interval=0.05)
PLAIN = partial(OIALR, activation_aware=False)  # the cut at the factorisation goes by singular values alone
METHODS = {
    "dense": dense,
    "oialr_size": partial(SIZED, bases="longer"),
    "oialr_longer": partial(OIALR, bases="longer"),
    "oialr_longer_plain": partial(PLAIN, bases="longer"),
    "oialr_longer_early": partial(OIALR, bases="longer", delay=0.1),
    "oialr_longer_from_start": partial(OIALR, bases="longer", delay=0),
    "oialr_longer_then_sigma": partial(OIALR, bases="longer", freeze_bases=0.65),
    "oialr_longer_then_sigma_plain": partial(PLAIN, bases="longer", freeze_bases=0.65),
    "oialr_sigma": partial(OIALR, bases="frozen"),
    "oialr_sigma_plain": partial(PLAIN, bases="frozen"),
    "low_rank": low_rank,
    "low_rank_late": low_rank_late,
    "low_rank_frobenius": partial(low_rank, frobenius=True),
    "galore": galore,
    "relora": partial(merged_lora, restart=True),
    "merged_lora": partial(merged_lora, restart=False),
}


def train(method: str, task: Any, settings: Settings, seed: int, points: int = 5) -> dict[str, Any]:
    """Train from the seed's weights on the seed's batches; everything a table needs, in plain numbers."""
    torch.manual_seed(seed)
    trained = METHODS[method](task.model(), settings)
    curve, seconds, sizes = [], 0.0, []
    for step, _, taken in steps(trained, task, settings, seed):
        seconds += taken
        sizes.append(sum(p.numel() for p in trained.model.parameters() if p.requires_grad))
        if step % max(1, settings.steps // points) == 0:
            curve.append([step, seconds, task.loss_on(trained.model, "validation")])
            if not math.isfinite(curve[-1][-1]):
                break
    later = sizes[len(sizes) // 2 :]
    test = task.measures(trained.model, "test")
    return {
        "curve": curve,
        "validation": curve[-1][-1],
        "test": test.pop("loss"),
        **{f"test_{name}": value for name, value in test.items()},
        "held": _held(trained.model),
        "trained_at_once": max(sizes),
        "trained_in_second_half": sum(later) / len(later),
        "optimizer_values": _optimizer_values(trained.optimizer),
    }


def steps(trained: Trained, task: Any, settings: Settings, seed: int) -> Iterator[tuple[int, torch.Tensor, float]]:
    """Train; after every step its number, its loss, and the seconds it took, of this process alone on a CPU."""
    schedule = torch.optim.lr_scheduler.LambdaLR(
        trained.optimizer, lambda step: trained.rate(step) * scheduled(step, settings.steps)
    )
    cuda = next(trained.model.parameters()).is_cuda
    for step, batch in zip(range(1, settings.steps + 1), task.batches(seed)):  # noqa: B905
        began = _now(cuda)
        loss = _step(trained, task, batch)
        schedule.step()
        yield step, loss, _now(cuda) - began


def _now(cuda: bool) -> float:
    if not cuda:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _step(trained: Trained, task: Any, batch: Any) -> torch.Tensor:
    loss = task.loss(trained.model, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(trained.model.parameters(), 1.0)
    trained.optimizer.step()
    trained.after_step()
    trained.optimizer.zero_grad()
    return loss.detach()


def scheduled(step: int, steps: int) -> float:
    """Warm-up over a tenth, then a cosine to a tenth of the rate."""
    warm = steps / 10
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _held(model: nn.Module) -> int:
    """Values that the model holds, factors and frozen bases included."""
    factors = [b for name, b in model.named_buffers() if "oialr_" in name]
    return sum(t.numel() for t in {id(t): t for t in (*model.parameters(), *factors)}.values())


def _optimizer_values(optimizer: torch.optim.Optimizer) -> int:
    """Values of the optimizer's state, GaLore's projections included; at the end of the run."""
    found = [value for state in optimizer.state.values() for value in state.values()]
    found = [getattr(value, "ortho_matrix", value) for value in found]
    return sum(value.numel() for value in found if isinstance(value, torch.Tensor) and value.ndim)


@cache
def task_of(name: str, data: Path, size: str, device: str) -> Any:
    """A task of `TASKS`; read once in a process."""
    make = TASKS[name]
    return make(data, make.sizes[size], device)


def record(*, data: Path, output: Path, points: int = 5, **given: Any) -> None:
    """Make the run that the options of `main` describe, and write it."""
    torch.set_num_threads(1)
    settings = Settings(*(given[name] for name in ("lr", "rank", "steps", "optimizer")))
    task = task_of(given["task"], data, given["size"], given["device"])
    found = train(given["method"], task, settings, given["seed"], points)
    versions = {"torch": torch.__version__, "oialr_peft": oialr_peft.__version__, "machine": platform.machine()}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**given, **found, "versions": versions}, indent=1) + "\n")
    label = [given[name] for name in ("task", "method", "optimizer", "rank", "lr", "seed")]
    print(*label, found["validation"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare/ and cifar10-jpeg/")
    parser.add_argument("--task", choices=TASKS, default="characters")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--size", default="small")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--rank", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--points", type=int, default=5, help="of the curve")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    record(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
