"""Processes that began with different numbers, lengths or folders: made alike, refused by name, or served."""

import pytest

from tests.workers.launch import results, torchrun


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[dict]]:
    return results(torchrun(2, "unlike_worker", tmp_path_factory.mktemp("saved")))


def test_bases_are_those_of_process_0_where_fsdp_shards_what_trains(outcomes):
    for outcome in outcomes["sharded_with_seeds_of_their_own"]:
        assert outcome == {"difference": 0.0}


@pytest.mark.parametrize("scene", ["in_a_window_of_fsdp", "in_a_window_of_fsdp_that_reduces_in_double"])
def test_an_update_inside_a_window_of_fsdp_is_refused_and_calls_in_it_are_no_steps(scene, outcomes):
    for outcome in outcomes[scene]:
        assert "inside a window of accumulation, of which FSDP2 keeps the gradients" in outcome["error"]
        assert outcome["steps"] == 2
        assert outcome["reports"] == 0


def test_runs_of_different_lengths_are_refused_before_the_first_step(outcomes):
    for outcome in outcomes["lengths_differ"]:
        assert "`total_steps` must be the same on all processes, but process 0 has 60" in outcome["error"]


def test_every_process_that_saves_a_compressed_model_has_it(outcomes):
    for outcome in outcomes["every_process_saves"]:
        assert outcome["difference"] < 1e-4
