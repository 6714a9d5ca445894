"""Run by torchrun: layers that leave the full-rank phase by their own bases, in the real Trainer."""

import json
import sys

import torch.distributed as dist

from oialr_peft import OIALRConfig
from tests.workers.ddp_worker import largest_difference, state, trained
from tests.workers.launch import leave


def main() -> None:
    config = OIALRConfig(delay="auto", update_interval=2, layer_step=0.5, sigma_cutoff=0.4, train_rest=True)
    trainer, updater = trained(f"{sys.argv[1]}/out", None, 1, 1.0, False, config)
    waiting = [e.get("oialr/waiting_layers", 0) for e in trainer.state.log_history if "oialr/mean_rank" in e]
    result = {
        "difference": largest_difference(state(trainer, updater)),
        "wrapped": updater.parallel.reducer.ddp is not None,
        "waiting": waiting,
    }
    if dist.get_rank() == 0:
        print("RESULTS " + json.dumps([result]), flush=True)


if __name__ == "__main__":
    main()
    leave()
