"""Records what twelve short runs come to, by public names only, so that any version of the package can be recorded.

    PYTHONPATH=<a tree of the package> python tests/records/record.py --out record.json

Bits depend on the processor, so two trees are compared on one machine: tests/records/test_records.py does.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from bases import Attention, Convolutions, batch, filled, llama, mlp
from datasets import Dataset
from peft import get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from oialr_peft import OIALRCallback, OIALRConfig, OIALRUpdater


Record = dict[str, Any]

# What keeps the behaviour of the first recorded version (f88ba7c) in later ones, by the config field that came since.
AS_RECORDED: dict[str, Any] = {"lr_scale": "none", "activation_aware": False}
SHORT = {"update_interval": 2, "layer_step": 0.4, "sigma_cutoff": 0.3}


def config(**settings: Any) -> OIALRConfig:
    fields = {field.name for field in dataclasses.fields(OIALRConfig)}
    return OIALRConfig(**{k: v for k, v in AS_RECORDED.items() if k in fields}, **(SHORT | settings))


def summary(model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> Record:
    """Losses, ranks, and of every weight and moment a hash and two float64 sums that show how far apart two are."""
    tensors = {f"weight {name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"moment {index} {key}": torch.as_tensor(value) for key, value in state.items()}
    return {"losses": losses, "ranks": model.base_model.ranks(), "tensors": {k: _facts(v) for k, v in tensors.items()}}


def _facts(tensor: torch.Tensor) -> list[Any]:
    plain = tensor.detach().contiguous()
    found = hashlib.sha256(plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    exact = plain.double()
    return [found, list(plain.shape), float(exact.sum()), float(exact.abs().sum())]


# -- loops of one's own ----------------------------------------------------------------------------------------


def loop(
    base: nn.Module,
    x: torch.Tensor,
    optimize: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    steps: int = 9,
    **settings: Any,
) -> Record:
    model = get_peft_model(base, config(**settings))
    wrapped = wrap(model)
    optimizer = optimize(p for p in model.parameters() if p.requires_grad)
    updater, losses = OIALRUpdater(wrapped, optimizer), []
    for step in range(steps):
        y = wrapped(x)
        loss = (y - batch(*y.shape, seed=step + 1).to(y.dtype)).square().mean()
        loss.backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return summary(model, optimizer, losses)


def adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=5e-2, momentum=0.9)


def adafactor(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(parameters, lr=1e-2)


def processes() -> Record:
    """Two processes with half a batch each; what the first holds at the end."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_process, args=(folder,), nprocs=2, start_method="fork")
        return json.loads(Path(folder, "record.json").read_text())


def _process(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=2)
    x = batch(8, 20)[index::2]
    found = loop(mlp(), x, adamw, wrap=DistributedDataParallel, delay=3, train_rest=True)
    if index == 0:
        Path(folder, "record.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


# -- the Trainer -----------------------------------------------------------------------------------------------


def trainer(folder: str, steps: int, **arguments: Any) -> transformers.Trainer:
    transformers.set_seed(0)
    ids = (torch.arange(48 * 8) * 7 % 39 + 1).reshape(48, 8).tolist()
    return transformers.Trainer(
        model=get_peft_model(llama(), config(delay=3, train_rest=True)),
        args=transformers.TrainingArguments(
            folder,
            max_steps=steps,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy=arguments.pop("save_strategy", "no"),
            per_device_train_batch_size=4,
            lr_scheduler_type="constant",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **arguments,
        ),
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}).with_format("torch"),
        callbacks=[OIALRCallback()],
    )


def trained(steps: int = 8, resumed_from: int | None = None, **arguments: Any) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        if resumed_from is not None:
            trainer(folder, resumed_from, save_strategy="steps", save_steps=resumed_from).train()
        run = trainer(folder, steps, **arguments)
        run.train(resume_from_checkpoint=resumed_from is not None)
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        return summary(run.model, run.optimizer, losses)


RUNS: dict[str, Callable[[], Record]] = {
    "processes": processes,  # first: forking is possible only before any backward
    "loop": lambda: loop(mlp(), batch(8, 20), adamw),
    "sgd": lambda: loop(mlp(), batch(8, 20), sgd, moments="slice"),
    "adafactor": lambda: loop(mlp(), batch(8, 20), adafactor),
    "bf16": lambda: loop(mlp().bfloat16(), batch(8, 20).bfloat16(), adamw),
    "delay": lambda: loop(mlp(), batch(8, 20), adamw, delay=3, train_rest=True, rank_multiple=4, max_cut=0.8),
    "lowrank": lambda: loop(filled(nn.Sequential(nn.Linear(64, 64))), batch(8, 64), adamw, init="lowrank", r=6),
    "convolution": lambda: loop(
        filled(Convolutions()), batch(2, 3, 8, 8), adamw, target_modules=["plane", "groups", "line"]
    ),
    "attention": lambda: loop(filled(Attention()), batch(2, 6, 16), adamw, target_modules=["attention", "out"]),
    "trainer": trained,
    "accumulation": lambda: trained(6, gradient_accumulation_steps=2),
    "resume": lambda: trained(9, resumed_from=6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    records = {}
    for name in options.only:
        torch.manual_seed(0)
        records[name] = RUNS[name]()
    options.out.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
