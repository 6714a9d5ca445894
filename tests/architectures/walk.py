"""One model from injection to its compressed files, and the other way in a process that has only the files."""

from __future__ import annotations

import json
import re
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model

from oialr_peft import OIALRConfig, OIALRUpdater, save_compressed

from .build import build
from .table import ROWS


STEPS = 6


def outbound(name: str, folder: Path) -> None:
    """Inject with the default choice of layers, train across updates, save both ways with what the model answers."""
    base, batch = build(name)
    before, row = main_output(base, batch), ROWS.get(name, {})
    rule = {"update_interval": 2, "layer_step": 1.0, "sigma_cutoff": 0.5, **row.get("rule", {})}
    if "refused" in row:
        with pytest.raises(ValueError, match=row["refused"]):
            get_peft_model(base, OIALRConfig(**rule))
        return
    model = get_peft_model(base, OIALRConfig(**rule))
    close(main_output(model, batch), before)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    updater = OIALRUpdater(model, optimizer)
    full = model.base_model.ranks()
    for step in range(STEPS):
        torch.manual_seed(step)
        main_tensor(model.train()(**batch)).float().square().mean().backward()
        if not step:
            assert_all_are_used(model, row.get("unused", "^$"))
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    ranks = model.base_model.ranks()
    assert sum(ranks.values()) < sum(full.values()), "no rank fell"
    after = main_output(model, batch)
    assert not torch.equal(after, before), "training changed nothing"
    model.save_pretrained(folder / "adapter")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no tokenizer or processor")
        save_compressed(model, folder / "small")
    torch.testing.assert_close(main_output(model, batch), after, rtol=0, atol=0)
    tokens = generated(base, batch) if row.get("generates", base.can_generate()) else None
    torch.save({"output": after, "tokens": tokens}, folder / "answers.pt")


def assert_all_are_used(model: torch.nn.Module, spared: str) -> None:
    """Every trained parameter has a gradient: the model sees the adapter of each layer."""
    unseen = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in unseen if not re.search(spared, name)]


def inbound(name: str, folder: Path) -> None:
    """The adapter on the base, and the compressed model without it, answer as the trained model did."""
    answers = torch.load(folder / "answers.pt")
    base, batch = build(name)
    adapted = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    close(main_output(adapted, batch), answers["output"])
    cls: Any = getattr(transformers, name)
    small = cls.from_pretrained(folder / "small").eval()
    close(main_output(small, batch), answers["output"])
    if answers["tokens"] is not None:
        close(generated(small, batch), answers["tokens"])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for rounding, which grows with the largest value."""
    tolerance = 5e-4 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@torch.no_grad()
def main_output(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)  # some models draw numbers in eval too
    return main_tensor(model.eval()(**batch))


def main_tensor(output: Any) -> torch.Tensor:
    """The first tensor of floating point that an output holds, its loss and losses apart."""
    if isinstance(output, torch.Tensor):
        return output
    items = [value for key, value in output.items() if "loss" not in key] if isinstance(output, Mapping) else output
    for item in items:
        if isinstance(item, torch.Tensor) and item.is_floating_point():
            return item
        if isinstance(item, (tuple, Mapping)):
            return main_tensor(item)
    raise TypeError(f"no tensor in {output}")


def generated(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Four tokens after the batch."""
    batch = {name: value for name, value in batch.items() if not name.startswith("decoder_")}
    torch.manual_seed(0)
    return model.generate(**batch, max_new_tokens=4, do_sample=False)


def main() -> None:
    """`python -m tests.architectures.walk FOLDER NAME...`: prints {name: what went wrong, or null} as JSON."""
    torch.set_num_threads(1)
    folder, *names = sys.argv[1:]
    errors: dict[str, str | None] = {}
    for name in names:
        try:
            inbound(name, Path(folder) / name)
            errors[name] = None
        except Exception:
            errors[name] = traceback.format_exc()
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
