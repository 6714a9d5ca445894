"""What a wrapper has beside plain averaging stays through cuts and loading, or is refused before step 1."""

import pytest

from tests.workers.launch import results, torchrun


STOPS = {  # what both processes say, or (process 0, process 1)
    "join": "OIALR does not support torch's `Join`",
    "zero_redundancy": "ZeroRedundancyOptimizer keeps the moments of a parameter on one process",
    "steps_differ": "the count of steps must be the same on all processes, but process 0 has 0 and process 1 has 2",
    "moments_fail_on_one_process": (
        "process 1 reports RuntimeError: Updating 'middle' failed on process 1: MemoryError: no memory left",
        "Updating 'middle' failed on process 1: MemoryError: no memory left",
    ),
    "factorised_together_of_two_configs": "OIALRConfig.sigma_cutoff must be the same on all processes, but process 0",
    "hybrid_sharding": "is sharded within groups and replicated between them (HSDP",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[dict]]:
    return results(torchrun(2, "wrappers_worker"))


@pytest.mark.parametrize("scene", STOPS)
def test_what_is_not_supported_is_refused_by_name_on_all_processes(scene, outcomes):
    words = STOPS[scene] if isinstance(STOPS[scene], tuple) else (STOPS[scene], STOPS[scene])
    for outcome, said in zip(outcomes[scene], words, strict=True):
        assert said in outcome["error"]


@pytest.mark.parametrize("scene", ["loaded_while_unused_are_looked_for", "loaded_while_all_are_used"])
def test_gradients_are_averaged_after_ranks_were_loaded_into_a_wrapped_model(scene, outcomes):
    for outcome in outcomes[scene]:
        assert outcome["equal"]
        assert outcome["ranks"] != [12, 24, 16]


def test_gradients_are_averaged_after_a_best_model_of_another_rank_came_back(outcomes):
    for outcome in outcomes["loaded_between_steps"]:
        assert outcome == {"equal": True, "cuts": 1}


@pytest.mark.parametrize("scene", ["power_sgd", "fp16_built_in", "forward_hook_with_keywords"])
def test_hooks_survive_the_cuts(scene, outcomes):
    for outcome in outcomes[scene]:
        assert outcome["alike"]
        assert outcome["cuts"] == 2
    assert all(outcome["compresses"] for outcome in outcomes["power_sgd"])
    assert all("FP16" in outcome["hook"] for outcome in outcomes["fp16_built_in"])
    assert all(outcome["calls"] == 14 for outcome in outcomes["forward_hook_with_keywords"])


def test_delayed_gradients_get_buffers_of_the_new_shapes(outcomes):
    for outcome in outcomes["delayed_reduction"]:
        assert outcome["cuts"] >= 2
        assert outcome["sizes"]


@pytest.mark.parametrize("scene", ["no_sync_stays", "post_local_sgd"])
def test_processes_that_step_apart_are_averaged_at_an_update_and_go_on_apart(scene, outcomes):
    for outcome in outcomes[scene]:
        assert outcome["cuts"] >= 1
        assert outcome["same after the update"]
        assert outcome.get("local", True)
        assert not outcome.get("synced", False)


def test_who_waits_for_a_slow_svd_says_whose_and_of_which_layer(outcomes):
    zero, one = outcomes["a_slow_svd"]
    assert zero["cuts"] == one["cuts"] == 1
    assert one["words"] == []
    (words,) = zero["words"]
    assert "process 0 has waited for process 1 and its SVD of 'last' (16, 16)" in words


def test_a_save_on_one_process_alone_says_that_all_must_come(outcomes):
    zero, one = outcomes["saved_on_one_process"]
    assert "Call `save_pretrained` and `save_compressed` on all processes" in zero["error"]
    assert one == {}


def test_a_forward_between_the_step_and_the_update_does_not_stop_training_under_fsdp(outcomes):
    for outcome in outcomes["forward_before_the_update_under_fsdp"]:
        assert outcome["rotation"] < 1e-5  # an update without a cut changes no output
        assert outcome["training"] > 1e-3


def test_a_start_that_is_factorised_together_is_the_one_made_alone(outcomes):
    for outcome in outcomes["factorised_together"]:
        assert outcome == {"same": True, "decomposed": 3, "layers": 6}
