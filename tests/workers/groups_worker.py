"""Run by torchrun on four processes: models of two processes each, what is sent, a policy that sees all layers."""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel

import oialr_peft.update
import oialr_peft.workers.exchange
import oialr_peft.workers.plan
from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.layer import adapted_weights
from oialr_peft.plain import model_size
from oialr_peft.workers.plan import svd_cost
from tests.conftest import MLP, tiny_llama
from tests.workers.launch import leave, tell_outcomes


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def config(**changes) -> OIALRConfig:
    fields = {"update_interval": 3, "layer_step": 1.0, "sigma_cutoff": 0.5, "max_cut": 0.3, "train_rest": True}
    return OIALRConfig(**{**fields, **changes})


def trained_in(group, seed: int, steps: int = 7, wrapped_first: bool = True):
    torch.manual_seed(seed)
    model = get_peft_model(MLP(), config())
    wrapped, optimizer = DistributedDataParallel(model, process_group=group), adamw(model)
    updater = OIALRUpdater(wrapped if wrapped_first else model, optimizer, check=True)
    for step in range(steps):
        x = torch.randn(4, 12, generator=torch.Generator().manual_seed(1000 * seed + 10 * step + dist.get_rank()))
        wrapped(x).square().mean().backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return model


def pairs() -> list:
    """The groups {0, 1} and {2, 3}; every process makes both."""
    return [dist.new_group([0, 1]), dist.new_group([2, 3])]


def two_groups_of_two(wrapped_first: bool = True) -> dict:
    mine = dist.get_rank() // 2
    model = trained_in(pairs()[mine], 1 + mine, wrapped_first=wrapped_first)
    everyone = [None] * 4
    dist.all_gather_object(everyone, dict(model.state_dict()))

    def same(a, b):
        return a.keys() == b.keys() and all(a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a)

    return {
        "within": same(everyone[0], everyone[1]) and same(everyone[2], everyone[3]),
        "between": same(everyone[0], everyone[2]),
    }


def two_groups_wrapped_out_of_sight() -> dict:
    return two_groups_of_two(wrapped_first=False)


def a_model_on_two_of_four() -> dict:
    group = pairs()[0]
    return {"ranks": trained_in(group, 1).base_model.ranks()} if dist.get_rank() < 2 else {}


def joint_policy() -> dict:
    """Ranks for a size, which depend on all spectra; at the first update those that one process alone would choose."""
    torch.manual_seed(1)
    settings = {"target_size": 0.45, "update_interval": 3, "bases": "longer", "activation_aware": False}
    model = get_peft_model(MLP(), OIALRConfig(**settings, train_rest=True))
    spectra = {
        name: torch.linalg.svdvals(weight.dense(torch.float32)) for name, weight in adapted_weights(model).items()
    }
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    updater = OIALRUpdater(wrapped, optimizer, total_steps=30, check=True)
    facts = {name: weight.facts for name, weight in updater.weights.items()}
    expected = updater.policies.ranks.choose(spectra, facts, 3)
    seen = []
    for step in range(15):
        optimizer.param_groups[0]["lr"] = 0.05 * (step > 2)
        x = torch.randn(2, 12, generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))
        wrapped(x).square().mean().backward()
        optimizer.step()
        seen += [updater.step()]
        optimizer.zero_grad()
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, model.base_model.ranks())
    first = next(report.ranks for report in seen if report)
    alike = all(other == everyone[0] for other in everyone)
    return {"first": first, "expected": expected, "alike": alike, "share": model_size(wrapped).share}


def nobody_waits_in_a_collective() -> dict:
    """Process 1 takes long for its SVDs; no broadcast of a round may start before it is through with them."""
    store, early = dist.PrefixStore("slow", dist.group.WORLD.get_group_store()), []
    decompose, broadcast = oialr_peft.update.decompose, dist.broadcast

    def slow(*args):
        if dist.get_rank() == 1:
            time.sleep(1.0)
            store.set("done", "yes")
        return decompose(*args)

    def watching(*args, **kwargs):
        if kwargs.get("async_op"):
            early.append(not store.check(["done"]))
        return broadcast(*args, **kwargs)

    oialr_peft.update.decompose, dist.broadcast = slow, watching
    try:
        trained_in(None, 1, steps=3)
    finally:
        oialr_peft.update.decompose, dist.broadcast = decompose, broadcast
    return {"broadcasts": len(early), "early": sum(early)}


def sent_and_decomposed() -> dict:
    """The bytes of a factorisation and of an update, and the work of every process."""
    sent, costs, found = [], [], []
    decompose, broadcast = oialr_peft.update.decompose, dist.broadcast

    def counting(tensor, *args, **kwargs):
        if kwargs.get("async_op"):
            sent.append(tensor.nbytes)
        return broadcast(tensor, *args, **kwargs)

    def noting(matrix, *args):
        costs.append(svd_cost(tuple(matrix.shape)))
        return decompose(matrix, *args)

    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), config(delay=2, update_interval=2, sigma_cutoff=0.0))
    wrapped, optimizer = DistributedDataParallel(model), adamw(model)
    updater = OIALRUpdater(wrapped, optimizer)
    rows = torch.randint(0, 48, (4, 2, 8), generator=torch.Generator().manual_seed(1))
    oialr_peft.update.decompose, dist.broadcast = noting, counting
    try:
        for row in rows:
            wrapped(input_ids=row, labels=row).loss.backward()
            optimizer.step()
            sent.clear()
            costs.clear()
            if updater.step():
                work = [None] * 4
                dist.all_gather_object(work, sum(costs))
                found.append({"bytes_sent": sum(sent), "costs": work, "messages": len(sent)})
            optimizer.zero_grad()
    finally:
        oialr_peft.update.decompose, dist.broadcast = decompose, broadcast
    return {"updates": found}


def narrow_windows() -> dict:
    """A factorisation and cuts with limits that are far below a layer's size, against the same with the usual ones."""
    plan, exchange = oialr_peft.workers.plan, oialr_peft.workers.exchange
    usual = {(module, name): getattr(module, name) for module in (plan, exchange) for name in LIMITS[module.__name__]}

    def run():
        torch.manual_seed(0)
        model = get_peft_model(MLP().double(), config(delay=2, update_interval=2))
        wrapped, optimizer = DistributedDataParallel(model), adamw(model)
        updater = OIALRUpdater(wrapped, optimizer, check=True)
        for step in range(6):
            x = torch.randn(4, 12, generator=torch.Generator().manual_seed(10 * step + dist.get_rank())).double()
            wrapped(x).square().mean().backward()
            optimizer.step()
            updater.step()
            optimizer.zero_grad()
        return model.base_model.ranks(), wrapped(torch.ones(2, 12).double())

    ranks, out = run()
    try:
        for module in (plan, exchange):
            for name, limit in LIMITS[module.__name__].items():
                setattr(module, name, limit)
        other, again = run()
    finally:
        for (module, name), limit in usual.items():
            setattr(module, name, limit)
    return {"ranks": ranks == other, "difference": float((out - again).abs().max().detach())}


LIMITS = {
    "oialr_peft.workers.plan": {"OWN_BYTES": 1000, "WINDOW_BYTES": 3000},
    "oialr_peft.workers.exchange": {"WINDOW_BYTES": 3000, "PACKED_BYTES": 500},
}

SCENES = (
    narrow_windows,
    two_groups_of_two,
    two_groups_wrapped_out_of_sight,
    a_model_on_two_of_four,
    joint_policy,
    nobody_waits_in_a_collective,
    sent_and_decomposed,
)


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.set_num_threads(1)
    tell_outcomes(scene for scene in SCENES if len(sys.argv) < 2 or scene.__name__ in sys.argv[1:])
    leave()
