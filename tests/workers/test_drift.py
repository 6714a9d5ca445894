"""Two processors that round otherwise."""

from tests.workers.launch import results, torchrun


def test_300_updates_on_unlike_processors_drift_no_further_than_dense_ddp():
    found = results(torchrun(2, "drift_worker", 300))
    assert found["oialr"]["alike"] is False
    assert found["oialr"]["difference"] <= found["dense"]["difference"]
