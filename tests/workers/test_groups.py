"""Four processes: models of two each, work and bytes as planned, nobody waits in a collective, joint policies."""

import pytest

from oialr_peft.plan.numbers import architecture, plan_run
from oialr_peft.plan.update import SVD_FLOPS
from tests.conftest import tiny_llama
from tests.workers.launch import results, torchrun


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[dict]]:
    return results(torchrun(4, "groups_worker"))


@pytest.mark.parametrize("scene", ["two_groups_of_two", "two_groups_wrapped_out_of_sight"])
def test_models_of_two_groups_have_nothing_to_do_with_each_other(scene, outcomes):
    assert outcomes[scene] == [{"within": True, "between": False}] * 4


def test_a_model_on_two_of_four_processes_does_not_wait_for_the_others(outcomes):
    one, two, *others = outcomes["a_model_on_two_of_four"]
    assert one == two
    assert len(one["ranks"]) == 3
    assert others == [{}, {}]


def test_a_joint_policy_sees_the_spectra_of_all_layers(outcomes):
    for outcome in outcomes["joint_policy"]:
        assert outcome["first"] == outcome["expected"]
        assert len(set(outcome["first"].values())) > 1
        assert outcome["alike"]
        assert 0.42 < outcome["share"] <= 0.45


def test_nothing_is_sent_before_the_slowest_process_has_its_svds(outcomes):
    for outcome in outcomes["nobody_waits_in_a_collective"]:
        assert outcome["broadcasts"] > 0
        assert outcome["early"] == 0


def test_results_that_do_not_fit_a_window_arrive_all_the_same(outcomes):
    for outcome in outcomes["narrow_windows"]:
        assert outcome["ranks"]
        assert outcome["difference"] < 1e-12


def test_four_processes_send_and_decompose_what_is_planned(outcomes):
    planned = plan_run(architecture(tiny_llama(), "tiny"), 4, rank=1.0, from_scratch=True, svd_gflops=1.0)
    for outcome in outcomes["sent_and_decomposed"]:
        for update, expected in zip(outcome["updates"], (planned.factorisation, planned.update), strict=True):
            assert update["bytes_sent"] == expected.bytes_sent
            assert [SVD_FLOPS * cost for cost in update["costs"]] == expected.svd_flops
            assert update["messages"] == 4  # small layers of one owner go as one
