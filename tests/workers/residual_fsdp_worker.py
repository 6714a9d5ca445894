"""Run by torchrun with one process or two (fully_shard): a residual adapter, trained, saved and loaded."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from oialr_peft import OIALRConfig, OIALRUpdater
from tests.conftest import tiny_llama
from tests.workers.fsdp_worker import logits
from tests.workers.launch import leave


def main() -> None:
    dist.init_process_group("gloo")
    world, folder = dist.get_world_size(), Path(sys.argv[1])
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama().double(), OIALRConfig(residual=True, r=4, save_bases=False))
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        for block in model.base_model.model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, foreach=False)
    updater = OIALRUpdater(model, optimizer, check=True)
    rows = torch.randint(0, 48, (6, 8, 8), generator=torch.Generator().manual_seed(1)).unflatten(1, (world, -1))
    for step in rows:
        model(input_ids=step[dist.get_rank()], labels=step[dist.get_rank()]).loss.backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / f"adapter-{world}", is_main_process=dist.get_rank() == 0)
    trained = logits(model)
    trained = trained.full_tensor() if hasattr(trained, "full_tensor") else trained
    if dist.get_rank() == 0:
        torch.manual_seed(0)
        loaded = PeftModel.from_pretrained(tiny_llama().double(), folder / f"adapter-{world}")
        torch.testing.assert_close(logits(loaded), trained, rtol=0, atol=1e-10)
        torch.save(trained, folder / f"logits-{world}.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
    leave()
