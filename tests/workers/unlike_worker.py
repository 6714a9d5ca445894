"""Run by torchrun: two processes that began with different numbers, lengths or folders."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM

from oialr_peft import OIALRConfig, OIALRUpdater, save_compressed
from tests.conftest import MLP, tiny_llama
from tests.workers.launch import leave, tell_outcomes


def sharded(seed: int, reduce_dtype: torch.dtype | None = None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    config = OIALRConfig(update_interval=3, layer_step=1.0, sigma_cutoff=0.2, train_rest=True)
    model = get_peft_model(MLP(), config)
    precision = MixedPrecisionPolicy(reduce_dtype=reduce_dtype)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), mp_policy=precision)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def batch(step: int) -> torch.Tensor:
    return torch.randn(4, 12, generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))


def sharded_with_seeds_of_their_own() -> dict:
    """FSDP2 takes every weight from the shards of both, and must take the bases from one."""
    model, optimizer = sharded(dist.get_rank())
    updater = OIALRUpdater(model, optimizer, check=True)
    for step in range(7):
        model(batch(step)).square().mean().backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    outputs = [torch.zeros(4, 4) for _ in range(2)]
    dist.all_gather(outputs, model(torch.ones(4, 12)).detach())
    return {"difference": float((outputs[0] - outputs[1]).abs().max())}


def in_a_window(reduce_dtype: torch.dtype | None) -> dict:
    model, optimizer = sharded(0, reduce_dtype)
    updater, reports = OIALRUpdater(model, optimizer), []
    for step in range(3):
        for last in (False, True):
            model.set_requires_gradient_sync(last)
            model(batch(2 * step + last)).square().mean().backward()
            if not last:
                reports.append(updater.step())  # of the steps before this window
        optimizer.step()
        optimizer.zero_grad()
    model.set_requires_gradient_sync(False)
    model(batch(9)).square().mean().backward()
    before = updater.steps
    try:
        updater.step()
    except RuntimeError as error:
        return {"error": str(error), "steps": before, "reports": sum(r is not None for r in reports)}
    return {"steps": before}


def in_a_window_of_fsdp() -> dict:
    return in_a_window(None)


def in_a_window_of_fsdp_that_reduces_in_double() -> dict:
    return in_a_window(torch.float64)


def lengths_differ() -> dict:
    """Each process passes the length of its own loader."""
    model = get_peft_model(MLP(), OIALRConfig(delay=0.3, target_size=0.8))
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    OIALRUpdater(wrapped, torch.optim.AdamW(model.parameters()), total_steps=60 + 6 * dist.get_rank())
    return {}


def every_process_saves() -> dict:
    """Into one folder, as a script under torchrun does, and each into one of its own."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), OIALRConfig(r=0.25)).eval()
    folder, tokens = Path(sys.argv[1]), torch.arange(8).reshape(1, 8)
    differences = []
    for place in (folder / "shared", folder / f"own-{dist.get_rank()}"):
        save_compressed(model, place)
        dist.barrier()
        loaded = AutoModelForCausalLM.from_pretrained(place).eval()
        differences.append(float((loaded(tokens).logits - model(tokens).logits).abs().max()))
    return {"difference": max(differences)}


SCENES = (
    sharded_with_seeds_of_their_own,
    in_a_window_of_fsdp,
    in_a_window_of_fsdp_that_reduces_in_double,
    lengths_differ,
    every_process_saves,
)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    tell_outcomes(SCENES)
    leave()
