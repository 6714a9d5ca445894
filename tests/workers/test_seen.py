"""`activation_aware` on two processes with batches of their own."""

import pytest

from tests.workers.launch import results, torchrun
from tests.workers.seen_worker import CASES, run


def test_all_hold_what_one_process_with_all_their_batches_would_choose():
    *found, alone, shared = results(torchrun(2, "seen_worker"))
    assert alone == []
    assert shared == {"both": [2.0] * 2, "of 0": [2.0] * 3, "of 1": [2.0] * 3}
    for case, (_, fields) in zip(found, CASES, strict=True):
        assert min(case["ranks"].values()) <= 8
        assert case["dropped"]
        assert all(0 <= share < 1 for share in case["dropped"].values())
        whole = run("alone", fields)["first"]
        assert case["first"]["ranks"] == whole["ranks"]
        assert case["first"]["dropped"] == pytest.approx(whole["dropped"], rel=1e-3)
