"""FSDP2's fully_shard on two processes: the ranks and weights of one process, small files, resume bit for bit."""

import re

import pytest
import torch
from safetensors.torch import load_file

from tests.workers.launch import results, torchrun


PARTS = ("oialr_u", "oialr_sigma", "oialr_vh")


def weights(folder) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [key.removesuffix(".oialr_u") for key in tensors if key.endswith(".oialr_u")]
    composed = {name: torch.linalg.multi_dot([tensors[f"{name}.{part}"] for part in PARTS]) for name in names}
    return {**composed, **{key: value for key, value in tensors.items() if ".oialr_" not in key}}


def test_two_sharded_processes_equal_one(tmp_path):
    one, two = (results(torchrun(processes, "fsdp_worker", tmp_path))[0] for processes in (1, 2))
    for rest in ("False", "True"):
        assert one[rest]["ranks"] == two[rest]["ranks"]
        assert one[rest]["cuts"] == two[rest]["cuts"] >= 3
        assert two[rest]["resumed"]
        assert two[rest]["loaded"] == 0.0
        assert two[rest]["compressed"] < 1e-5  # its factors are multiplied in float32
        assert two[rest]["loaded_ranks"] == two[rest]["ranks"]
        expected, found = (weights(tmp_path / f"early-{processes}-{rest}") for processes in (1, 2))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9, msg=name)


@pytest.mark.slow
def test_a_residual_adapter_shards_like_one_process(tmp_path):
    for processes in (1, 2):
        torchrun(processes, "residual_fsdp_worker", tmp_path)
    one, two = (torch.load(tmp_path / f"logits-{n}.pt") for n in (1, 2))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-8)


def test_a_failure_inside_a_collective_phase_ends_the_run_at_once():
    """The others wait in a collective call, where no word reaches them; the end of the process does."""
    output = torchrun(2, "fsdp_fault_worker", fails=True, timeout=200)
    assert re.search(r"Updating '[\w.]+' failed on process 1: MemoryError: no room for the third layer", output)
