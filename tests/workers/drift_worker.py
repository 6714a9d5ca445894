"""Run by torchrun on two processes with unlike instruction sets: how far they drift apart, dense and with OIALR."""

import os


if os.environ["LOCAL_RANK"] == "1":  # before torch looks
    os.environ["ATEN_CPU_CAPABILITY"] = "default"
    os.environ["MKL_CBWR"] = "COMPATIBLE"

import json
import sys

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel

from oialr_peft import OIALRConfig, OIALRUpdater
from tests.conftest import MLP
from tests.workers.launch import leave


def drift(config: OIALRConfig | None, updates: int) -> dict:
    """The largest difference between two processes, over weights, bases and moments."""
    torch.manual_seed(0)
    model = MLP(96) if config is None else get_peft_model(MLP(96), config)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    updater = None if config is None else OIALRUpdater(wrapped, optimizer)
    for step in range(updates):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(2 * step + dist.get_rank()))
        wrapped(x).square().mean().backward()
        optimizer.step()
        if updater is not None:
            updater.step()
        optimizer.zero_grad()
    everyone = [None, None]
    ours = {name: value for name, value in model.state_dict().items() if config is None or "oialr" in name}
    dist.all_gather_object(everyone, ours)
    one, two = everyone
    largest = max(float((one[name] - two[name]).abs().max()) for name in one)
    alike = None if updater is None else getattr(getattr(updater, "parallel", None), "workers", None)
    return {"difference": largest, "alike": getattr(alike, "alike", None)}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    updates = int(sys.argv[1])
    config = OIALRConfig(update_interval=1, layer_step=1.0, sigma_cutoff=0.01)
    found = {"dense": drift(None, updates), "oialr": drift(config, updates)}
    if dist.get_rank() == 0:
        print("RESULTS " + json.dumps(found), flush=True)
    leave()
