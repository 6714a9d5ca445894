"""Between updates nothing of ours reads a value back from the device, which would make the host wait for it."""

import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback, TrainingArguments

import oialr_peft
from oialr_peft import MuonAdamW, OIALRCallback, OIALRConfig, OIALRUpdater
from tests.conftest import MLP, tiny_gpt2


OURS = str(Path(oialr_peft.__file__).parent)
TORCHS = str(Path(torch.optim.__file__).parent / "adam")
WAITING = ("_local_scalar_dense", "is_nonzero", "aten.equal", "aten.nonzero", "aten.unique")
READING = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__array__")


def ours() -> bool:
    """Whether code of the package is running, and not an optimizer of torch that reads its own count of steps."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith((OURS, TORCHS)):
            return frame.f_code.co_filename.startswith(OURS)
        frame = frame.f_back
    return False


class Reads(TorchDispatchMode):
    """Counts what the package does that would wait for a GPU: operators, methods of tensors, synchronisation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        for owner, names in ((torch.Tensor, READING), (torch.cuda, ["synchronize"])):
            for name in names:
                monkeypatch.setattr(owner, name, self.noted(getattr(owner, name), name))

    def noted(self, call, name: str):
        def noting(*args, **kwargs):
            if ours():
                self.found.append(name)
            return call(*args, **kwargs)

        return noting

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in WAITING) and ours():
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))

    def take(self) -> list[str]:
        found, self.found = self.found, []
        return found


OPTIMIZERS = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters()),
    "foreach": lambda model: torch.optim.AdamW(model.parameters(), foreach=True),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "Muon": lambda model: MuonAdamW.from_model(model),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bases", ["frozen", "longer"])
def test_a_step_without_an_update_reads_nothing_back(name, bases, monkeypatch):
    config = OIALRConfig(r=0.5, update_interval=3, bases=bases, train_rest=True, delay=1)
    model = get_peft_model(MLP(), config)
    optimizer = OPTIMIZERS[name](model)
    updater, found = OIALRUpdater(model, optimizer), []
    with Reads(monkeypatch) as reads:
        for _ in range(7):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(8, 12)).square().mean()
            loss.backward()
            optimizer.step()
            report = updater.step()
            updater.state_dict()
            optimizer.zero_grad()
            found.append((report is not None, reads.take()))
    assert [updated for updated, _ in found] == [True, False, False, True, False, False, True]
    assert all(bool(what) == updated for updated, what in found), found  # an update reads, once per layer and SVD


class Between(TrainerCallback):
    """What was read in each step of the Trainer."""

    def __init__(self, reads: Reads) -> None:
        self.reads, self.found = reads, []

    def on_step_end(self, *args, **kwargs):
        self.found.append(self.reads.take())


def test_nor_does_the_trainers_callback(monkeypatch, tmp_path):
    reads = Reads(monkeypatch)
    data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 16
    arguments = TrainingArguments(str(tmp_path), max_steps=7, use_cpu=True, report_to=[], save_strategy="no")
    model, between = get_peft_model(tiny_gpt2(), OIALRConfig(update_interval=3)), Between(reads)
    with reads:
        Trainer(model, arguments, train_dataset=data, callbacks=[OIALRCallback(), between]).train()
    assert [bool(what) for what in between.found[1:]] == [False, True, False, False, True, False], between.found
