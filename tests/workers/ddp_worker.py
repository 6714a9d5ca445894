"""Run by torchrun: the real Trainer on several processes in every combination, then what differs between them."""

import gc
import itertools
import json
import sys

import torch
import torch.distributed as dist
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from oialr_peft import OIALRCallback, OIALRConfig, OIALRUpdater
from tests.conftest import tiny_llama
from tests.workers.launch import leave


STEPS = 52
COMBINATIONS = list(itertools.product((None, False, True), (1, 4), (0.0, 1.0), (False, True)))


def trained(folder: str, find_unused, accumulation: int, clip: float, checkpointing: bool, config=None):
    torch.manual_seed(0)
    fields = {"delay": 4, "update_interval": 8, "layer_step": 0.5, "sigma_cutoff": 0.4, "max_cut": 0.25}
    moving = {"bases": "longer", "freeze_bases": 30} if clip else {}  # in half of the combinations
    model = get_peft_model(tiny_llama(), config or OIALRConfig(**fields, **moving, train_rest=True))
    rows = torch.randint(0, 48, (64, 8), generator=torch.Generator().manual_seed(1))
    args = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=clip,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        ddp_find_unused_parameters=find_unused,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    callback = OIALRCallback(check=True)
    trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
    trainer.train()
    return trainer, callback.updater


def state(trainer: Trainer, updater: OIALRUpdater) -> dict[str, torch.Tensor]:
    tensors = dict(trainer.model.state_dict())
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for parameter, entries in updater.carrier.optimizer.state.items():
        tensors.update({f"{names[id(parameter)]}:{k}": v for k, v in entries.items() if isinstance(v, torch.Tensor)})
    return tensors


def largest_difference(tensors: dict[str, torch.Tensor]) -> float:
    """Between process 0 and the others, over all tensors; infinite where a shape differs."""
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, tensors)
    return max(
        float((mine - theirs).abs().max()) if mine.shape == theirs.shape else float("inf")
        for other in everyone
        for mine, theirs in ((everyone[0][name], other[name]) for name in everyone[0])
        if mine.numel()
    )


def main() -> None:
    results = []
    for combination in COMBINATIONS[int(sys.argv[2]) :: int(sys.argv[3])]:
        trainer, updater = trained(f"{sys.argv[1]}/out", *combination)
        history = [e["oialr/mean_rank"] for e in trainer.state.log_history if "oialr/mean_rank" in e]
        results.append(
            {
                "combination": combination,
                "difference": largest_difference(state(trainer, updater)),
                "tensors": len(state(trainer, updater)),
                "cuts": sum(after < before for before, after in itertools.pairwise(history)),
                "ranks": sorted(trainer.model.base_model.ranks().values()),
                "wrapped": updater.parallel.reducer.ddp is not None,
            }
        )
        del trainer, updater
        gc.collect()
    if dist.get_rank() == 0:
        print("RESULTS " + json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
    leave()
