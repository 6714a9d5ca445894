"""`activation_aware` on two processes with batches of their own."""

from tests.workers.launch import results, torchrun


def test_all_hold_what_the_owner_of_a_layer_chose():
    *found, alone = results(torchrun(2, "seen_worker"))
    assert alone == []
    for case in found:
        assert min(case["ranks"].values()) <= 8
        assert case["dropped"]
        assert all(0 <= share < 1 for share in case["dropped"].values())
