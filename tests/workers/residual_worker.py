"""Run by torchrun: a residual adapter in the real Trainer, and one whose start the processes shared."""

import json
import sys

import torch
import torch.distributed as dist
from peft import get_peft_model

from oialr_peft import OIALRConfig, factorise_together
from oialr_peft.layer import adapted_weights
from tests.conftest import tiny_llama
from tests.workers.ddp_worker import largest_difference, state, trained
from tests.workers.launch import leave


def main() -> None:
    config = OIALRConfig(residual=True, r=4)
    trainer, updater = trained(f"{sys.argv[1]}/out", None, 1, 1.0, False, config)
    torch.manual_seed(0)
    with factorise_together():
        shared = get_peft_model(tiny_llama(), OIALRConfig(residual=True, r=4))
    alone = adapted_weights(trainer.model)
    differences = [
        float((mine - theirs).abs().max())
        for name, weight in adapted_weights(shared).items()
        for mine, theirs in zip(weight.factors[::2], alone[name].factors[::2], strict=True)
    ]
    result = {
        "difference": largest_difference(state(trainer, updater)),
        "wrapped": updater.parallel.reducer.ddp is not None,
        "moved": min(float(weight.core.abs().max()) for weight in alone.values()),
        "together": max(differences),
    }
    if dist.get_rank() == 0:
        print("RESULTS " + json.dumps([result]), flush=True)


if __name__ == "__main__":
    main()
    leave()
