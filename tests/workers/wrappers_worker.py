"""Run by torchrun: what wrappers of two processes can do beside plain training, through cuts and after loading."""

import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import oialr_peft.update
import oialr_peft.workers.group
import oialr_peft.workers.saving
from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning, factorise_together
from oialr_peft.moments import MomentCarrier
from oialr_peft.tuner import together
from tests.conftest import MLP
from tests.workers.faults_worker import alike
from tests.workers.launch import leave, tell_outcomes


def model_of(**changes):
    torch.manual_seed(0)
    fields = {"update_interval": 3, "layer_step": 1.0, "sigma_cutoff": 0.5, "max_cut": 0.3, "train_rest": True}
    return get_peft_model(MLP(), OIALRConfig(**{**fields, **changes}))


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def batch(step: int) -> torch.Tensor:
    return torch.randn(4, 12, generator=torch.Generator().manual_seed(100 * step + dist.get_rank()))


def train(wrapped, optimizer, updater, steps: int = 10, context=nullcontext) -> int:
    """Train; returns how many updates cut something."""
    cuts = 0
    for step in range(steps):
        with context():
            wrapped(batch(step)).square().mean().backward()
            optimizer.step()
            report = updater.step()
        cuts += bool(report and report.changed)
        optimizer.zero_grad()
    return cuts


def gradients_equal(wrapped) -> bool:
    """Whether one more step has the same gradients everywhere: those of the mean over all batches."""
    wrapped(batch(99)).square().mean().backward()
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [p.grad for p in wrapped.module.parameters() if p.grad is not None])
    wrapped.zero_grad()
    return all(torch.equal(one, two) for one, two in zip(everyone[0], everyone[-1], strict=True))


def loaded_after_wrapping(find_unused: bool) -> dict:
    """Ranks that come by `load_state_dict` once DDP has been made, as Accelerate's `load_state` does."""
    trained = model_of()
    wrapped, optimizer = DistributedDataParallel(trained), adamw(trained)
    train(wrapped, optimizer, OIALRUpdater(wrapped, optimizer), 4)
    model = model_of()
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
    updater = OIALRUpdater(model, adamw(model))
    model.load_state_dict(trained.state_dict())
    wrapped(batch(0)).square().mean().backward()
    wrapped.zero_grad()
    return {"equal": gradients_equal(wrapped), "ranks": [weight.rank for weight in updater.weights.values()]}


def loaded_while_unused_are_looked_for() -> dict:
    return loaded_after_wrapping(True)


def loaded_while_all_are_used() -> dict:
    return loaded_after_wrapping(False)


def loaded_between_steps() -> dict:
    """A best model of another rank, put back under a wrapper that has already trained."""
    model = model_of()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped, optimizer = DistributedDataParallel(model, find_unused_parameters=True), adamw(model)
    cuts = train(wrapped, optimizer, OIALRUpdater(wrapped, optimizer), 4)
    model.load_state_dict(first)
    return {"equal": gradients_equal(wrapped), "cuts": cuts}


def with_hook(register) -> dict:
    model = model_of(update_interval=5)
    wrapped, optimizer = DistributedDataParallel(model), adamw(model)
    register(wrapped)
    cuts = train(wrapped, optimizer, OIALRUpdater(wrapped, optimizer, check=True), 14)
    return {"alike": alike(wrapped), "cuts": cuts, "hook": wrapped._get_ddp_logging_data().get("comm_hook", "")}


def power_sgd() -> dict:
    state = powerSGD_hook.PowerSGDState(dist.group.WORLD, matrix_approximation_rank=2, start_powerSGD_iter=2)
    found = with_hook(lambda wrapped: wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook))
    return {**found, "compresses": bool(state.p_memory_dict)}


def fp16_built_in() -> dict:
    return with_hook(lambda w: w._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS))


def forward_hook_with_keywords() -> dict:
    seen = []

    def look(module, args, kwargs, output):
        seen.append(kwargs)

    found = with_hook(lambda wrapped: wrapped.register_forward_hook(look, with_kwargs=True))
    return {**found, "calls": len(seen)}


def delayed_reduction() -> dict:
    """Some parameters of the rest, and sigma of one layer, whose shape changes, are reduced later by DDP."""
    model = model_of()
    late = {n: p for n, p in model.named_parameters() if "score" in n or "middle.oialr_sigma" in n}
    first = next(p for n, p in model.named_parameters() if "first" in n and p.requires_grad)
    wrapped = DistributedDataParallel(
        model, delay_all_reduce_named_params=list(late.items()), param_to_hook_all_reduce=first
    )
    optimizer = adamw(model)
    cuts = train(wrapped, optimizer, OIALRUpdater(wrapped, optimizer), 10)
    sizes = wrapped._delay_grad_buffer.numel() == sum(p.numel() for p in late.values())
    return {"cuts": cuts, "sizes": sizes}


def no_sync_stays() -> dict:
    """Local steps, as in Accelerate's LocalSGD: an update averages what it decomposes and leaves `no_sync` on."""
    model = model_of()
    wrapped, optimizer = DistributedDataParallel(model), adamw(model)
    updater = OIALRUpdater(wrapped, optimizer)
    synced = []
    with wrapped.no_sync():
        wrapped.register_forward_hook(lambda *_: synced.append(wrapped.require_backward_grad_sync))
        cuts = train(wrapped, optimizer, updater, 3)
        sigmas = [weight.core.detach().clone() for weight in updater.weights.values()]
        train(wrapped, optimizer, updater, 2)
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, sigmas)
    same = all(torch.equal(one, two) for one, two in zip(everyone[0], everyone[1], strict=True))
    return {"cuts": cuts, "synced": any(synced), "same after the update": same}


def post_local_sgd() -> dict:
    subgroup = dist.new_subgroups(group_size=1)[0]
    state = PostLocalSGDState(dist.group.WORLD, subgroup, start_localSGD_iter=2)
    model = model_of()
    wrapped, optimizer = DistributedDataParallel(model), adamw(model)
    wrapped.register_comm_hook(state, post_localSGD_hook)
    updater = OIALRUpdater(wrapped, optimizer)
    cuts = train(wrapped, optimizer, updater, 6)
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [weight.core.detach() for weight in updater.weights.values()])
    same = all(torch.equal(one, two) for one, two in zip(everyone[0], everyone[1], strict=True))
    return {"cuts": cuts, "same after the update": same, "local": state.iter >= 2}


def join() -> dict:
    model = model_of()
    wrapped, optimizer = DistributedDataParallel(model), adamw(model)
    updater = OIALRUpdater(wrapped, optimizer)
    with Join([wrapped]):
        train(wrapped, optimizer, updater, 4)
    return {}


def zero_redundancy() -> dict:
    model = model_of()
    optimizer = ZeroRedundancyOptimizer(
        [p for p in model.parameters() if p.requires_grad], optimizer_class=torch.optim.AdamW, lr=1e-2
    )
    OIALRUpdater(DistributedDataParallel(model), optimizer)
    return {}


def steps_differ() -> dict:
    """A checkpoint that only one node sees."""
    model = model_of()
    wrapped, optimizer = DistributedDataParallel(model), adamw(model)
    updater = OIALRUpdater(wrapped, optimizer)
    if dist.get_rank() == 1:
        updater.load_state_dict({"steps": 2})
    train(wrapped, optimizer, updater, 4)
    return {}


def moments_fail_on_one_process() -> dict:
    """In the middle of an update, on a process that owns other layers; all must stop, none may wait."""
    model = model_of()
    wrapped, optimizer = DistributedDataParallel(model), adamw(model)
    updater = OIALRUpdater(wrapped, optimizer)
    transport = MomentCarrier.transport
    sigma = next(weight.core for name, weight in updater.weights.items() if name == "middle")

    def failing(self, parameter, *args, **kwargs):
        if parameter is sigma and dist.get_rank() == 1:
            raise MemoryError("no memory left")
        return transport(self, parameter, *args, **kwargs)

    MomentCarrier.transport = failing
    try:
        train(wrapped, optimizer, updater, 4)
    finally:
        MomentCarrier.transport = transport
    return {}


def forward_before_the_update_under_fsdp() -> dict:
    """A forward without gradients leaves FSDP2's root group unsharded; training goes on after the update."""
    model = model_of(sigma_cutoff=0.0, r=8, train_rest=False)
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model, mesh=mesh)
    optimizer = adamw(model)
    updater = OIALRUpdater(model, optimizer)
    x = batch(7)
    moved = []
    for step in range(9):
        model(batch(step)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            before = model(x)
        updater.step()
        optimizer.zero_grad()
        with torch.no_grad():
            moved.append(float((model(x) - before).abs().max()))
    with torch.no_grad():
        start = model(x)
    for step in range(2):
        model(batch(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return {"rotation": max(moved), "training": float((model(x) - start).abs().max())}


def a_slow_svd() -> dict:
    """Process 1 takes two seconds for its SVDs, and process 0 says after half a second what it waits for."""
    decompose, first_word = oialr_peft.update.decompose, oialr_peft.workers.group.FIRST_WORD

    def slow(*args):
        if dist.get_rank() == 1:
            time.sleep(2)
        return decompose(*args)

    oialr_peft.update.decompose, oialr_peft.workers.group.FIRST_WORD = slow, timedelta(seconds=0.5)
    model = model_of()
    wrapped, optimizer = DistributedDataParallel(model), adamw(model)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", OIALRWarning)
            cuts = train(wrapped, optimizer, OIALRUpdater(wrapped, optimizer), 3)
    finally:
        oialr_peft.update.decompose, oialr_peft.workers.group.FIRST_WORD = decompose, first_word
    return {"cuts": cuts, "words": [str(warning.message) for warning in caught]}


def saved_on_one_process() -> dict:
    """FSDP2: the other process never comes, so the gathering must not begin."""
    model = model_of()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    patience = oialr_peft.workers.saving._ALL_HERE
    oialr_peft.workers.saving._ALL_HERE = timedelta(seconds=1)
    try:
        if dist.get_rank() == 0:
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
    finally:
        oialr_peft.workers.saving._ALL_HERE = patience
    return {}


def hybrid_sharding() -> dict:
    model = model_of()
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("between", "within")))
    OIALRUpdater(model, adamw(model))
    return {}


def factorised_together() -> dict:
    """Half of the SVDs on each process, and the factors of a start made alone; attention is taken apart too."""
    decomposed, decompose = [], together.decompose

    def counting(matrix, *args):
        decomposed.append(tuple(matrix.shape))
        return decompose(matrix, *args)

    def model():
        torch.manual_seed(0)
        layers = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        return get_peft_model(layers, OIALRConfig(r=0.5, target_modules=["linear1", "linear2", "self_attn"]))

    alone = model()
    together.decompose = counting
    try:
        with factorise_together():
            shared = model()
        model()  # by each process for itself again
    finally:
        together.decompose = decompose
    same = [torch.equal(one, two) for one, two in zip(alone.parameters(), shared.parameters(), strict=True)]
    return {"same": all(same), "decomposed": len(decomposed), "layers": len(shared.base_model.ranks())}


def factorised_together_of_two_configs() -> dict:
    with factorise_together():
        model_of(sigma_cutoff=0.1 * (1 + dist.get_rank()))
    return {}


SCENES = (
    factorised_together,
    factorised_together_of_two_configs,
    loaded_while_unused_are_looked_for,
    loaded_while_all_are_used,
    loaded_between_steps,
    power_sgd,
    fp16_built_in,
    forward_hook_with_keywords,
    delayed_reduction,
    no_sync_stays,
    post_local_sgd,
    join,
    zero_redundancy,
    steps_differ,
    moments_fail_on_one_process,
    forward_before_the_update_under_fsdp,
    a_slow_svd,
    saved_on_one_process,
    hybrid_sharding,
)


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=40))
    tell_outcomes(scene for scene in SCENES if len(sys.argv) < 2 or scene.__name__ in sys.argv[1:])
    leave()
