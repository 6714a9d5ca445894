"""A user's global settings of torch, its default dtype and device, change nothing of ours."""

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.overrides import TorchFunctionMode

import oialr_peft
from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.update_report import sampled
from tests.conftest import MLP


DRAWING = (torch.randn, torch.rand, torch.randint, torch.randperm)
MADE = re.compile(r"torch\.(zeros|ones|empty|full|eye|arange|linspace|tensor|rand|randn|randint|randperm)\(")
ELSEWHERE = {  # what a user makes a model of follows the defaults, as torch's own layers do
    "kinds/experts.py": "layers",
    "training/muon.py": "holds nothing",
    "export/vllm_plugin.py": "inside vLLM's own device context",
}


@pytest.fixture
def bfloat16():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


class LikeCuda(TorchFunctionMode):
    """torch's rule with another default device: a generator of the CPU is refused where no device is named."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in DRAWING and kwargs.get("generator") is not None and kwargs.get("device") is None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return func(*args, **kwargs)


def train(config: OIALRConfig) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(MLP().float(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater = OIALRUpdater(model, optimizer, total_steps=8)
    for step in range(8):
        x = torch.linspace(-1, 1, 36, dtype=torch.float32).reshape(3, 12).add(step).sin()
        model(x).square().mean().backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return model


def test_a_spectrum_of_any_length_is_sampled(bfloat16):
    for length in (1, 17, 260, 300, 512, 4096):
        found = sampled(torch.arange(length, dtype=torch.float32, device="cpu"))
        assert (found[0], found[-1]) == (0, length - 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"sigma_cutoff": 0.3},
        {"delay": "auto", "r": 0.5, "train_rest": True},
        {"target_size": 0.9, "update_interval": 2},
        {"residual": True, "save_bases": False, "r": 2},
        {"init": "lowrank", "r": 1},
    ],
)
@pytest.mark.parametrize("default", ["bfloat16", "device"])
def test_training_saving_and_loading_are_the_same(default, settings, tmp_path, request):
    config = {"target_modules": ["first", "middle", "last"], **settings}
    expected = train(OIALRConfig(**config)).state_dict()
    if default == "device":
        with LikeCuda():
            model = train(OIALRConfig(**config))
    else:
        request.getfixturevalue("bfloat16")
        model = train(OIALRConfig(**config))
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    base = MLP().float()
    if default == "device":
        with LikeCuda():
            PeftModel.from_pretrained(base, tmp_path)
    else:
        PeftModel.from_pretrained(base, tmp_path)


def test_no_tensor_of_ours_is_made_on_the_default_device():
    root = Path(oialr_peft.__file__).parent
    bare = []
    for file in root.rglob("*.py"):
        name = file.relative_to(root).as_posix()
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if MADE.search(line)]
        bare += [(name, line) for line in lines if not ("device=" in line or ", **" in line or name in ELSEWHERE)]
    assert bare == []
