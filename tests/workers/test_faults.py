"""Faults on one of two processes: all go on alike, or all stop with words; none hangs."""

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from oialr_peft import OIALRConfig, OIALRUpdater
from tests.conftest import MLP
from tests.workers.launch import results, torchrun


STOPS = {  # fault: what every process says, or (process 0, process 1)
    "different_configs": "OIALRConfig.sigma_cutoff must be the same on all processes, but process 0 has 0.5 and",
    "different_targets": "OIALRConfig.target_modules must be the same on all processes",
    "frozen_on_one_process": (
        "process 1 reports ValueError: The OIALR adapter is frozen",
        "The OIALR adapter is frozen",
    ),
    "wrapped_before_the_adapter": "Inject the adapter first, then wrap the model",
    "not_wrapped": "but not through DistributedDataParallel",
    "sharded_while_dense": "is still dense, and FSDP2 shards by shape, so it cannot be factorised later",
    "sharded_while_settling": "is still dense, and FSDP2 shards by shape, so it cannot be factorised later",
    "fully_sharded_1": "FSDP (version 1) is not supported. OIALR trains on several processes with",
    "tensor_parallel": "tensor parallel and its combinations are not supported. OIALR trains on several processes",
    "svd_fails_on_one_process": "The SVD of 'last' failed on process 1",
    "drift_is_noticed": "the moments of 'first' after the update at step 3 must be the same on all processes",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[dict]]:
    return results(torchrun(2, "faults_worker"))


@pytest.mark.parametrize("fault", STOPS)
def test_all_processes_stop_and_say_why(fault, outcomes):
    words = STOPS[fault] if isinstance(STOPS[fault], tuple) else (STOPS[fault], STOPS[fault])
    for outcome, said in zip(outcomes[fault], words, strict=True):
        assert said in outcome["error"]


def test_a_sigma_that_is_not_finite_on_its_owner_is_skipped_on_all_processes(outcomes):
    zero, one = outcomes["nan_on_one_process"]
    assert zero == one
    assert 0 < len(zero["skipped"]) < 3
    assert zero["warnings"] == 1


def test_a_sigma_that_drifted_is_the_owners_again_after_an_update(outcomes):
    for outcome in outcomes["sigma_off_by_a_little"]:
        assert outcome["alike"]
        assert max(outcome["ranks"]) <= 12


def test_ddps_options_and_hooks_survive_the_cuts(outcomes):
    for outcome in outcomes["static_graph_and_bucket_views"]:
        assert outcome["alike"]
        assert outcome["cuts"] >= 2
        assert outcome["kept"]


def test_one_process_that_shards_is_refused_as_several_are():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = get_peft_model(MLP(), OIALRConfig(delay=2))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(NotImplementedError, match="is still dense, and FSDP2 shards by shape"):
            OIALRUpdater(model, torch.optim.AdamW(model.parameters()))
    finally:
        dist.destroy_process_group()
