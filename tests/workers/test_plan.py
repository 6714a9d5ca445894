"""The plan of who computes which SVD."""

import pytest

from oialr_peft.workers.plan import assign_owners, svd_cost


AUTOFORMER = [(512, 512)] * 16 + [(2048, 512)] * 6
BERT_BASE = ([(768, 768)] * 4 + [(3072, 768), (768, 3072)]) * 12 + [(768, 768)]
LLAMA_8B = ([(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)] + [(14336, 4096)] * 2 + [(4096, 14336)]) * 32


@pytest.mark.parametrize("shapes", [AUTOFORMER, BERT_BASE, LLAMA_8B], ids=["autoformer", "bert", "llama"])
@pytest.mark.parametrize("processes", [2, 4, 8])
@pytest.mark.parametrize("dense", [True, False])
def test_the_slowest_owner_is_close_to_the_mean(shapes, processes, dense):
    shapes = shapes if dense else [(min(shape),) * 2 for shape in shapes]
    costs = [svd_cost(shape) for shape in shapes]
    loads = [0] * processes
    for owner, cost in zip(assign_owners(costs, processes), costs, strict=True):
        loads[owner] += cost
    assert max(loads) <= 1.10 * sum(loads) / processes


def test_every_process_makes_the_same_plan_and_one_process_owns_all():
    assert assign_owners([5, 5, 3, 2, 2], 2) == [0, 1, 0, 1, 1]
    assert assign_owners([1, 2, 3], 1) == [0, 0, 0]
    assert assign_owners([], 4) == []
    assert svd_cost((4, 8, 27)) == 4 * 8 * 27 * 8
