"""Faults on one of two processes: all go on alike, or all stop with words; none hangs."""

import pytest

from tests.distributed.launch import results, torchrun


REFUSED = {
    "different_configs": "OIALRConfig.sigma_cutoff must be the same on all processes, but process 0 has 0.5 and process 1",
    "different_layers": "OIALRConfig.target_modules must be the same on all processes",
    "frozen_on_one_process": "process 1 reports ValueError: The OIALR adapter is frozen",
    "wrapped_before_the_adapter": "Inject the adapter first, then wrap the model",
    "not_wrapped": "but not through DistributedDataParallel",
    "sharded": "FSDP2 and tensor parallel are not supported yet. OIALR trains on several processes with",
    "svd_fails_on_one_process": "The SVD of 'last' failed on process 1",
    "drift_is_noticed": "the moments of 'first' after the update at step 3 must be the same on all processes",
}


@pytest.mark.parametrize("fault", REFUSED)
def test_all_processes_stop_and_say_why(fault):
    output = torchrun(2, "faults_worker", fault, fails=True, timeout=120)
    for process in (0, 1):
        lines = [line for line in output.splitlines() if line.startswith(f"[rank{process}]:")]
        assert "Error: " in lines[-1]
    assert REFUSED[fault] in output


def test_a_sigma_that_is_not_finite_on_its_owner_is_skipped_on_all_processes():
    outcome = results(torchrun(2, "faults_worker", "nan_on_one_process", timeout=120))
    assert 0 < len(outcome["skipped"]) < 3
    assert outcome["warnings"] == 1


def test_a_sigma_that_drifted_is_the_owners_again_after_an_update():
    outcome = results(torchrun(2, "faults_worker", "sigma_off_by_a_little", timeout=120))
    assert outcome["alike"]
    assert max(outcome["ranks"]) <= 12
