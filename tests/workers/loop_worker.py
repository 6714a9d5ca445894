"""Run by torchrun with one or two processes: the same run in a loop of its own, and what was reduced at every step."""

import json
import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from oialr_peft import OIALRConfig, OIALRUpdater
from tests.conftest import tiny_llama
from tests.workers.launch import leave


STEPS, EARLY, BATCH, ACCUMULATION = 100, 31, 8, 2  # at EARLY rounding has not yet grown: two updates were made


def counting(reduced: list, bucket):
    reduced.append(bucket.buffer().numel() * bucket.buffer().element_size())
    return allreduce_hook(dist.group.WORLD, bucket)


def main() -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    config = OIALRConfig(delay=10, update_interval=20, layer_step=0.5, sigma_cutoff=0.3, train_rest=True)
    model = get_peft_model(tiny_llama().double(), config)
    wrapped, reduced = model, []
    if size > 1:
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=7)
        wrapped.register_comm_hook(reduced, counting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    updater = OIALRUpdater(wrapped, optimizer)
    rows = torch.randint(0, 48, (STEPS, ACCUMULATION, BATCH, 8), generator=torch.Generator().manual_seed(1))
    share, cuts, log = BATCH // size, 0, []
    for step in range(STEPS):
        for micro, batch in enumerate(rows[step]):
            mine = batch[rank * share : (rank + 1) * share]
            last = micro == ACCUMULATION - 1
            with nullcontext() if last or size == 1 else wrapped.no_sync():
                loss = wrapped(input_ids=mine, labels=mine).loss
                (loss / ACCUMULATION).backward()
        trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        log.append({"reductions": len(reduced), "bytes": sum(reduced), "trainable_bytes": trainable})
        reduced.clear()
        optimizer.step()
        report = updater.step()
        cuts += bool(report and report.changed)
        optimizer.zero_grad()
        if rank == 0 and step + 1 == EARLY:
            torch.save(model.state_dict(), f"{sys.argv[1]}/state-{size}.pt")
    everything = rows[-1].flatten(0, 1)
    with torch.no_grad():
        final = float(model(input_ids=everything, labels=everything).loss)
    if rank == 0:
        facts = {"ranks": model.base_model.ranks(), "cuts": cuts, "log": log, "loss": final}
        with open(f"{sys.argv[1]}/facts-{size}.json", "w") as file:
            json.dump(facts, file)
    del wrapped, updater, optimizer, model


if __name__ == "__main__":
    main()
    leave()
