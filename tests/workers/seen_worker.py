"""Run by torchrun on two processes: what stays at a given rank is chosen by one of them, from its own batches."""

import json
import warnings
from typing import Any

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning
from tests.conftest import tiny_llama
from tests.workers.launch import leave


STEPS = 12
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ddp", {"r": 0.5, "delay": 4}),
    ("ddp", {"target_size": 0.85}),
    ("fsdp", {"target_size": 0.85}),
]


def run(wrapper: str, fields: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    config = OIALRConfig(train_rest=True, sigma_cutoff=OIALRConfig.sigma_cutoff, **fields)
    model: Any = get_peft_model(tiny_llama(), config)
    if wrapper == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.base_model.model.model.layers:
            fully_shard(block, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    else:
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, foreach=False)
    updater = OIALRUpdater(wrapped, optimizer, total_steps=STEPS, check=True)  # which compares after every update
    rows = torch.randint(0, 48, (STEPS, 4, 8), generator=torch.Generator().manual_seed(dist.get_rank()))
    dropped = {}
    for batch in rows:
        wrapped(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        if (report := updater.step()) is not None:
            dropped |= report.dropped
        optimizer.zero_grad()
    return {"ranks": model.base_model.ranks(), "dropped": dropped}


def main() -> None:
    dist.init_process_group("gloo")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OIALRWarning)
        found = [run(wrapper, fields) for wrapper, fields in CASES]
    alone = [str(w.message) for w in caught if "by the weights alone" in str(w.message)]
    if dist.get_rank() == 0:
        print("RESULTS " + json.dumps([*found, alone]), flush=True)


if __name__ == "__main__":
    main()
    leave()
