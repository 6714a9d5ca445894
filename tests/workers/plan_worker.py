"""Run by torchrun: what a training run really reduces, sends, decomposes and holds, for comparison with its plan."""

import json

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import oialr_peft.update
from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.workers.plan import svd_cost
from tests.conftest import tiny_llama
from tests.workers.launch import leave


STEPS, EVERY = 6, 2
NO_CUT = {"update_interval": EVERY, "layer_step": 1.0, "sigma_cutoff": 0.0}
CONFIGS = {
    "dense": None,
    "scratch": OIALRConfig(delay=EVERY, train_rest=True, **NO_CUT),
    "fine-tuning": OIALRConfig(r=0.25, **NO_CUT),
    "moving": OIALRConfig(r=0.25, bases="longer", **NO_CUT),
    "cuts": OIALRConfig(delay=EVERY, **{**NO_CUT, "sigma_cutoff": 0.5, "max_cut": 0.3}),
}
REDUCED, SENT, DECOMPOSED = [], [], []


def reducing(_, bucket):
    REDUCED.append(bucket.buffer().nbytes)
    return allreduce_hook(dist.group.WORLD, bucket)


def counted(function, log: list, measure):
    """`function`, which notes the measure of its first argument on the way."""

    def call(first, *args, **kwargs):
        log.append(measure(first))
        return function(first, *args, **kwargs)

    return call


def held(model, optimizer) -> dict[str, int]:
    """Bytes of the tensors on this process, by kind."""
    named = [*model.named_parameters(), *model.named_buffers()]
    ours = {name: t.nbytes for name, t in named if any(f".oialr_{part}." in name for part in ("u", "sigma", "vh"))}
    moments = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    return {
        "weights": sum(t.nbytes for name, t in model.named_parameters() if name not in ours),
        "factors": sum(ours.values()),
        "gradients": sum(p.grad.nbytes for p in model.parameters() if p.grad is not None),
        "moments": sum(t.nbytes for t in moments),
    }


def measured(config: OIALRConfig | None) -> dict:
    torch.manual_seed(0)
    model = tiny_llama() if config is None else get_peft_model(tiny_llama(), config)
    wrapped = DistributedDataParallel(model)
    wrapped.register_comm_hook(None, reducing)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater = None if config is None else OIALRUpdater(wrapped, optimizer)
    rows = torch.randint(0, 48, (STEPS, 2, 8), generator=torch.Generator().manual_seed(1 + dist.get_rank()))
    updates = []
    for log in (REDUCED, SENT, DECOMPOSED):
        log.clear()
    for batch in rows:
        REDUCED.clear()
        wrapped(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        facts = {"step_bytes": sum(REDUCED), "memory": held(model, optimizer)}
        SENT.clear()
        DECOMPOSED.clear()
        if updater and (report := updater.step()):
            work = [None] * dist.get_world_size()
            dist.all_gather_object(work, sum(DECOMPOSED))
            update = {"bytes_sent": sum(SENT), "costs": work, "changed": report.changed, "ranks": report.ranks}
            updates.append(update)
        optimizer.zero_grad()
    return {**facts, "updates": updates}


def main() -> None:
    dist.init_process_group("gloo")
    dist.broadcast = counted(dist.broadcast, SENT, lambda tensor: tensor.nbytes)
    dist.all_reduce = counted(dist.all_reduce, SENT, lambda tensor: tensor.nbytes)
    oialr_peft.update.decompose = counted(oialr_peft.update.decompose, DECOMPOSED, lambda m: svd_cost(tuple(m.shape)))
    runs = {name: measured(config) for name, config in CONFIGS.items()}
    if dist.get_rank() == 0:
        print("RESULTS " + json.dumps(runs), flush=True)


if __name__ == "__main__":
    main()
    leave()
