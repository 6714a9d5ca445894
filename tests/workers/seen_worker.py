"""Run by torchrun on two processes: what stays at a given rank is chosen by one of them, from the batches of both."""

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
from oialr_peft.workers.group import Workers
from oialr_peft.workers.totals import totals
from tests.conftest import tiny_llama
from tests.workers.launch import leave


STEPS, PROCESSES = 12, 2
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ddp", {"r": 0.5, "delay": 4}),
    ("ddp", {"target_size": 0.85}),
    ("fsdp", {"target_size": 0.85, "bases": "frozen"}),
]


def run(wrapper: str, fields: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    config = OIALRConfig(train_rest=True, sigma_cutoff=OIALRConfig.sigma_cutoff, **fields)
    model: Any = get_peft_model(tiny_llama(), config)
    if wrapper == "alone":
        wrapped = model
    elif wrapper == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.base_model.model.model.layers:
            fully_shard(block.mlp, mesh=mesh)  # which ends in a layer: its shards are back in place in the backward
            fully_shard(block, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    else:
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, foreach=False)
    updater = OIALRUpdater(wrapped, optimizer, total_steps=STEPS, check=True)  # which compares after every update
    halves = [
        torch.randint(0, 48, (STEPS, 4, 8), generator=torch.Generator().manual_seed(i)) for i in range(PROCESSES)
    ]
    rows = torch.cat(halves, dim=1) if wrapper == "alone" else halves[dist.get_rank()]
    dropped, first = {}, None
    for batch in rows:
        wrapped(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        if (report := updater.step()) is not None:
            dropped |= report.dropped
            first = first or (report.changed and {"ranks": report.ranks, "dropped": report.dropped})
        optimizer.zero_grad()
    return {"ranks": model.base_model.ranks(), "dropped": dropped, "first": first}


def main() -> None:
    dist.init_process_group("gloo")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OIALRWarning)
        found = [run(wrapper, fields) for wrapper, fields in CASES]
    own = {"both": torch.ones(2), f"of {dist.get_rank()}": torch.full((3,), 2.0)}
    shared = totals(Workers(dist.group.WORLD), own)
    alone = [str(w.message) for w in caught if "by the weights alone" in str(w.message)]
    if dist.get_rank() == 0:
        sums = {name: total.tolist() for name, total in shared.items()}
        print("RESULTS " + json.dumps([*found, alone, sums]), flush=True)


if __name__ == "__main__":
    main()
    leave()
