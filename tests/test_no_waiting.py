"""Between updates nothing of ours reads a value back from the device, which would make the host wait for it."""

import torch
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from oialr_peft import OIALRConfig, OIALRUpdater
from tests.conftest import MLP


class Reads(TorchDispatchMode):
    """Counts the operators that hand a value to Python."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "local_scalar_dense" in str(func) or "is_nonzero" in str(func)
        return func(*args, **(kwargs or {}))


def test_a_step_without_an_update_reads_nothing_back():
    model = get_peft_model(MLP(), OIALRConfig(r=0.5, update_interval=2))
    optimizer = torch.optim.AdamW(model.parameters())
    updater, counts = OIALRUpdater(model, optimizer), []
    for _ in range(4):
        model(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()  # which reads its own step count
        with Reads() as reads:
            updater.step()
            model(torch.randn(8, 12))
        counts.append(reads.count)
    assert counts[0] == counts[2] == 0
    assert counts[1] > 0  # an update does, once per layer and SVD
