"""Wrote, with version f88ba7c, the adapters and the compressed model of this folder, and what they gave.

PYTHONPATH=<a tree of f88ba7c> python tests/records/write_files.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from bases import ADAPTERS, outputs
from peft import get_peft_model
from safetensors.torch import save_file
from torch import nn

from oialr_peft import OIALRConfig, OIALRUpdater, save_compressed


HERE = Path(__file__).parent


def trained(base: nn.Module, x: torch.Tensor, settings: dict) -> nn.Module:
    model = get_peft_model(
        base, OIALRConfig(**{"update_interval": 2, "layer_step": 1.0, "sigma_cutoff": 0.3} | settings)
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater = OIALRUpdater(model, optimizer)
    for _ in range(3):
        found = model(x)
        (found if isinstance(found, torch.Tensor) else found.logits).square().mean().backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return model


def main() -> None:
    torch.set_num_threads(1)
    expected = {}
    for name, (base, x, settings) in ADAPTERS.items():
        model = trained(base(), x(), settings)
        expected[name] = outputs(model, x())
        model.save_pretrained(HERE / "files" / name)
        if name == "gpt2":
            save_compressed(model, HERE / "files" / "compressed")
    save_file(expected, HERE / "files" / "outputs.safetensors")


if __name__ == "__main__":
    main()
