"""Run by torchrun with one process (plain) or two (FSDP2's fully_shard): the same run, saved, and resumed half way."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from peft import PeftModel, get_peft_model
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaForCausalLM

from oialr_peft import OIALRConfig, OIALRUpdater, save_compressed
from tests.conftest import tiny_llama
from tests.workers.launch import leave


STEPS, EARLY, BATCH = 44, 22, 8  # at EARLY rounding has not yet grown: two updates were made


class Run:
    """A model in training, sharded where there are several processes."""

    def __init__(self, train_rest: bool) -> None:
        torch.manual_seed(0)
        config = OIALRConfig(update_interval=10, layer_step=0.5, sigma_cutoff=0.3, train_rest=train_rest)
        self.model = get_peft_model(tiny_llama().double(), config)
        if dist.get_world_size() > 1:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for block in self.model.base_model.model.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-2, foreach=False)
        self.updater = OIALRUpdater(self.model, self.optimizer, check=True)
        self.cuts = 0

    def train(self, first: int, last: int) -> None:
        rows = torch.randint(0, 48, (STEPS, BATCH, 8), generator=torch.Generator().manual_seed(1))
        share = BATCH // dist.get_world_size()
        for step in range(first, last):
            mine = rows[step][dist.get_rank() * share : (dist.get_rank() + 1) * share]
            self.model(input_ids=mine, labels=mine).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            report = self.updater.step()
            self.cuts += bool(report and report.changed)
            self.optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
        (folder / f"updater-{dist.get_rank()}.json").write_text(json.dumps(self.updater.state_dict()))

    def load(self, folder: Path) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        states = {"model": model, "optimizer": optimizer}
        dcp.load(states, checkpoint_id=folder)
        set_state_dict(
            self.model, self.optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"]
        )
        self.updater.load_state_dict(json.loads((folder / f"updater-{dist.get_rank()}.json").read_text()))

    def whole(self) -> dict[str, torch.Tensor]:
        return get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(16).reshape(2, 8)).logits


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    size, facts = dist.get_world_size(), {}
    for train_rest in (False, True):
        run = Run(train_rest)
        run.train(0, EARLY)
        run.model.save_pretrained(folder / f"early-{size}-{train_rest}", is_main_process=dist.get_rank() == 0)
        if size > 1:
            run.save(folder / f"half-{train_rest}")
        run.train(EARLY, STEPS)
        full, out = run.whole(), logits(run.model)
        if size > 1:
            resumed = Run(train_rest)
            resumed.load(folder / f"half-{train_rest}")
            resumed.train(EARLY, STEPS)
            again = resumed.whole()
            same = all(torch.equal(again[name], value) for name, value in full.items())
        exported, small = folder / f"adapter-{size}-{train_rest}", folder / f"small-{size}-{train_rest}"
        save_compressed(run.model, small)
        run.model.save_pretrained(exported, is_main_process=dist.get_rank() == 0)
        dist.barrier()
        if dist.get_rank() == 0:
            torch.manual_seed(0)
            loaded = PeftModel.from_pretrained(tiny_llama().double(), exported)
            facts[str(train_rest)] = {
                "ranks": run.model.base_model.ranks(),
                "cuts": run.cuts,
                "resumed": same if size > 1 else True,
                "loaded": float((logits(loaded) - out).abs().max()),
                "loaded_ranks": loaded.base_model.ranks(),
                "compressed": float((logits(LlamaForCausalLM.from_pretrained(small)) - out).abs().max()),
            }
        dist.barrier()
    if dist.get_rank() == 0:
        print("RESULTS " + json.dumps([facts]), flush=True)


if __name__ == "__main__":
    main()
    leave()
