"""Run by torchrun: one fault after the other on one of two processes, and what each process then says."""

import warnings

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel

import oialr_peft.update
from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.linalg import decompose
from tests.conftest import MLP
from tests.workers.launch import leave, tell_outcomes


def config(**changes) -> OIALRConfig:
    return OIALRConfig(**{"update_interval": 3, "layer_step": 1.0, "sigma_cutoff": 0.5, "train_rest": True, **changes})


def make(updater: bool = True, check: bool = False, **changes):
    torch.manual_seed(0)
    model = get_peft_model(MLP(), config(**changes))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return wrapped, optimizer, OIALRUpdater(wrapped, optimizer, check=check) if updater else None


def step(wrapped, optimizer, updater):
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(dist.get_rank()))
    wrapped(x).square().mean().backward()
    optimizer.step()
    report = updater.step()
    optimizer.zero_grad()
    return report


def sigmas(updater: OIALRUpdater) -> list[torch.nn.Parameter]:
    return [weight.core for weight in updater.weights.values()]


def alike(wrapped) -> bool:
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, dict(wrapped.module.state_dict()))
    return all(torch.equal(everyone[0][name], other[name]) for other in everyone for name in everyone[0])


def nan_on_one_process() -> dict:
    """NaN in every sigma of process 1: what process 0 owns is healed there, what it owns itself is skipped on both."""
    wrapped, optimizer, updater = make()
    step(wrapped, optimizer, updater)
    step(wrapped, optimizer, updater)
    if dist.get_rank() == 1:
        for sigma in sigmas(updater):
            sigma.data.fill_(float("nan"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OIALRWarning)
        updater.steps = 3 - 1
        optimizer.step()  # without gradients: counted, and nothing changes
        report = updater.step()
    return {"skipped": report.skipped, "ranks": next(iter(updater.weights.values())).rank, "warnings": len(caught)}


def sigma_off_by_a_little() -> dict:
    """A sigma that drifted on one process is the owner's again after the update."""
    wrapped, optimizer, updater = make()
    step(wrapped, optimizer, updater)
    if dist.get_rank() == 1:
        for sigma in sigmas(updater):
            sigma.data += 1e-6 * torch.randn_like(sigma)
    updater.steps = 3 - 1
    optimizer.step()  # without gradients: counted, and nothing changes
    updater.step()
    return {"alike": alike(wrapped), "ranks": [weight.rank for weight in updater.weights.values()]}


def static_graph_and_bucket_views() -> dict:
    """DDP's options survive the reducers that are made anew; its own forward hooks too."""
    torch.manual_seed(0)
    model = get_peft_model(MLP(), config())
    wrapped = DistributedDataParallel(model, static_graph=True, gradient_as_bucket_view=True)
    calls = []
    wrapped.register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    updater = OIALRUpdater(wrapped, optimizer, check=True)
    cuts = [bool(report and report.changed) for report in (step(wrapped, optimizer, updater) for _ in range(10))]
    kept = wrapped.static_graph and wrapped.gradient_as_bucket_view and len(calls) == 10
    return {"alike": alike(wrapped), "cuts": sum(cuts), "kept": kept}


def svd_fails_on_one_process() -> dict:
    wrapped, optimizer, updater = make()
    if dist.get_rank() == 1:

        def broken(*args):
            raise MemoryError("no memory left")

        oialr_peft.update.decompose = broken
    try:
        for _ in range(3):
            step(wrapped, optimizer, updater)
    finally:
        oialr_peft.update.decompose = decompose
    return {}


def drift_is_noticed() -> dict:
    wrapped, optimizer, updater = make(check=True)
    for _ in range(2):
        step(wrapped, optimizer, updater)
    if dist.get_rank() == 1:
        optimizer.state[sigmas(updater)[0]]["exp_avg"] += 1
    step(wrapped, optimizer, updater)
    return {}


def different_configs() -> dict:
    make(sigma_cutoff=0.5 if dist.get_rank() == 0 else 0.25)
    return {}


def different_targets() -> dict:
    torch.manual_seed(0)
    model = get_peft_model(MLP(), config(target_modules=["first"] if dist.get_rank() == 0 else ".*first"))
    OIALRUpdater(DistributedDataParallel(model), torch.optim.AdamW(model.parameters()))
    return {}


def frozen_on_one_process() -> dict:
    """As in the Trainer, whose callbacks see the model without its wrapper."""
    model = get_peft_model(MLP(), config())
    optimizer = torch.optim.AdamW(model.parameters())
    wrapped = DistributedDataParallel(model)
    if dist.get_rank() == 1:
        model.requires_grad_(False)
    step(wrapped, optimizer, OIALRUpdater(model, optimizer))
    return {}


def wrapped_before_the_adapter() -> dict:
    wrapped = DistributedDataParallel(MLP())
    wrapped.module = get_peft_model(wrapped.module, config())
    optimizer = torch.optim.AdamW(wrapped.module.parameters())
    OIALRUpdater(wrapped, optimizer)
    return {}


def not_wrapped() -> dict:
    model = get_peft_model(MLP(), config())
    optimizer = torch.optim.AdamW(model.parameters())
    updater = OIALRUpdater(model, optimizer)
    for _ in range(3):
        step(model, optimizer, updater)
    return {}


def sharded_while_dense(delay: int | str = 5) -> dict:
    from torch.distributed.fsdp import fully_shard

    model = get_peft_model(MLP(), config(delay=delay))
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    OIALRUpdater(model, torch.optim.AdamW(model.parameters()), total_steps=60)
    return {}


def sharded_while_settling() -> dict:
    return sharded_while_dense("auto")


def fully_sharded_1() -> dict:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(
        get_peft_model(MLP(), config()), use_orig_params=True, device_id=torch.device("cpu")
    )
    OIALRUpdater(model, torch.optim.AdamW(model.parameters()))
    return {}


def tensor_parallel() -> dict:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = get_peft_model(MLP(), config())
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    parallelize_module(model.base_model.model, mesh, {"score": ColwiseParallel()})
    OIALRUpdater(model, torch.optim.AdamW(model.parameters()))
    return {}


FAULTS = (
    nan_on_one_process,
    sigma_off_by_a_little,
    static_graph_and_bucket_views,
    svd_fails_on_one_process,
    drift_is_noticed,
    different_configs,
    different_targets,
    frozen_on_one_process,
    wrapped_before_the_adapter,
    not_wrapped,
    sharded_while_dense,
    sharded_while_settling,
    fully_sharded_1,
    tensor_parallel,
)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    tell_outcomes(FAULTS)
    leave()
