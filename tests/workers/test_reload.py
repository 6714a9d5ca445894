"""Ranks loaded under a wrapper that has been made before, by the Trainer and by Accelerate, on two processes."""

import pytest

from tests.workers.launch import results, torchrun


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    return results(torchrun(2, "reload_worker", tmp_path_factory.mktemp("reload")))


@pytest.mark.parametrize("way", ["trainer", "accelerate"])
def test_training_goes_on_as_if_it_had_not_stopped(way, outcomes):
    assert outcomes[way]["difference"] == 0.0
    assert outcomes[way]["same"]
