"""torch.compile: the result of eager, and a bounded number of compilations."""

import copy
import gc

import pytest
import torch
from peft import get_peft_model
from torch._dynamo.testing import CompileCounterWithBackend

from oialr_peft import OIALRConfig, OIALRUpdater
from tests.conftest import MLP


def run(model, compiled, steps: int) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    updater = OIALRUpdater(model, optimizer)
    x, losses = torch.randn(4, 12, generator=torch.Generator().manual_seed(1)), []
    for _ in range(steps):
        losses.append(compiled(x).square().sum())
        losses[-1].backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return [loss.detach() for loss in losses]


@pytest.mark.parametrize(("multiple", "compilations"), [(1, 8), (8, 5)])
def test_compiled_training_equals_eager_across_ten_cuts(multiple, compilations):
    gc.collect()  # updaters of other tests, which ended right before an update
    torch._dynamo.reset()
    config = OIALRConfig(
        update_interval=2, layer_step=1.0, sigma_cutoff=0.5, max_cut=0.1, rank_multiple=multiple, train_rest=True
    )
    eager = get_peft_model(MLP(), config)
    model = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    expected = run(eager, eager, 24)
    losses = run(model, torch.compile(model, backend=counter), 24)
    assert model.base_model.ranks() == eager.base_model.ranks()
    assert min(model.base_model.ranks().values()) <= 12
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    assert 2 <= counter.frame_count <= compilations
