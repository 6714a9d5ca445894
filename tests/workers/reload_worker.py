"""Run by torchrun: ranks that are loaded under a wrapper, by the Trainer and by Accelerate, and then training on."""

import json
import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from peft import get_peft_model

from oialr_peft import OIALRCallback, OIALRConfig, OIALRUpdater
from tests.conftest import tiny_llama
from tests.training import runs
from tests.workers.ddp_worker import largest_difference
from tests.workers.launch import leave


def trained_and_resumed_on_one_trainer(folder: str) -> dict:
    """`train()`, then `train(resume_from_checkpoint=...)` of an earlier checkpoint with higher ranks."""
    model = get_peft_model(tiny_llama(), OIALRConfig(**runs.SETTINGS))
    trainer = runs.trainer(
        folder, model=model, callbacks=[OIALRCallback(check=True)], save_strategy="steps", save_steps=8
    )
    trainer.train()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    ranks = sorted(model.base_model.ranks().values())
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-8")
    again = model.state_dict()
    same = all(torch.equal(first[name], again[name]) for name in first) if first.keys() == again.keys() else False
    return {"difference": largest_difference(dict(again)), "ranks": ranks, "same": same}


def prepared_and_loaded(folder: str) -> dict:
    """Accelerate: train and `save_state`; then a new model, `prepare`, `load_state`, and train on."""

    def start():
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        model = get_peft_model(tiny_llama(), OIALRConfig(**{**runs.SETTINGS, "delay": 2}))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return accelerator, *accelerator.prepare(model, optimizer)

    def train(model, optimizer, updater, first, last):
        rows = torch.randint(0, 48, (24, 2, 8), generator=torch.Generator().manual_seed(1 + dist.get_rank()))
        for row in rows[first:last]:
            model(input_ids=row, labels=row).loss.backward()
            optimizer.step()
            updater.step()
            optimizer.zero_grad()

    accelerator, model, optimizer = start()
    updater = OIALRUpdater(model, optimizer)
    train(model, optimizer, updater, 0, 12)
    accelerator.save_state(folder)
    state = updater.state_dict()
    train(model, optimizer, updater, 12, 24)
    accelerator, other, optimizer = start()
    accelerator.load_state(folder)
    updater = OIALRUpdater(other, optimizer)
    updater.load_state_dict(state)
    train(other, optimizer, updater, 12, 24)
    one, two = accelerator.unwrap_model(model).state_dict(), accelerator.unwrap_model(other).state_dict()
    same = one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    return {"difference": largest_difference(dict(two)), "same": same}


if __name__ == "__main__":
    found = {
        "trainer": trained_and_resumed_on_one_trainer(f"{sys.argv[1]}/trainer"),
        "accelerate": prepared_and_loaded(f"{sys.argv[1]}/accelerate"),
    }
    if dist.get_rank() == 0:
        print("RESULTS " + json.dumps(found), flush=True)
    leave()
