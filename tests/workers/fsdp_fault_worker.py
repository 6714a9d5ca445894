"""Run by torchrun with two processes: one of them fails while it applies an update to weights that FSDP2 shards."""

import torch
import torch.distributed as dist

import oialr_peft.workers.plan
from oialr_peft.weights import AdaptedWeight
from tests.workers.fsdp_worker import Run


if __name__ == "__main__":
    dist.init_process_group("gloo")  # with its own timeout of half an hour
    torch.set_num_threads(1)
    oialr_peft.workers.plan.OWN_BYTES = 1  # many rounds, so that others are in the middle of theirs
    apply, calls = AdaptedWeight.apply, []

    def failing(weight, change):
        calls.append(weight)
        if dist.get_rank() == 1 and len(calls) == 3:
            raise MemoryError("no room for the third layer")
        return apply(weight, change)

    AdaptedWeight.apply = failing
    Run(train_rest=False).train(0, 44)
