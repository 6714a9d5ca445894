"""Run by torchrun: train to a step, or resume there on another number of processes, with the same batches."""

import sys

import torch
import torch.distributed as dist
from peft import get_peft_model

from oialr_peft import OIALRConfig
from oialr_peft.checkpoint import last_complete_checkpoint
from tests.conftest import tiny_llama
from tests.training import runs
from tests.workers.launch import leave


def train() -> None:
    folder, processes, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), OIALRConfig(**runs.SETTINGS))
    trainer = runs.trainer(
        folder,
        model=model,
        max_steps=last,
        lr_scheduler_type="constant",
        warmup_steps=0,
        per_device_train_batch_size=8 // processes,
        save_strategy="steps",
        save_steps=12,
        learning_rate=1e-3,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), f"{folder}/end-{last}.pt")


if __name__ == "__main__":
    train()
    if dist.is_initialized():
        leave()
