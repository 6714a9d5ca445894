"""The cases: (name, what is damaged in a copy of a sound folder), by kind of input."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import get_peft_model
from torch import nn

from oialr_peft import OIALRConfig, save_compressed
from tests.conftest import MLP, tiny_llama
from tests.helpers import disturb

from .damage import BASES, TENSORS, Change, bytes_of, change_tensors, fields_of, headers, text_of


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
FIELDS = (
    *("ranks", "format_version", "rank_pattern", "target_modules", "exclude_modules", "modules_to_save"),
    *("layers_pattern", "layers_to_transform", "r", "delay", "update_interval", "sigma_cutoff", "train_rest"),
    *("keep_base_weights", "moments", "init", "peft_type", "task_type", "base_model_name_or_path", "auto_mapping"),
)


class WithNorm(MLP):
    """The MLP with BatchNorm, whose statistics go with an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x))


# What an adapter may hold, with the keys that are damaged in each.
ADAPTERS = {
    "plain": ({"r": 0.5}, MLP, ("middle.oialr_u", "middle.oialr_sigma", "middle.oialr_vh")),
    "rest": ({"r": 0.5, "train_rest": True}, MLP, ("score.weight", "first.base_layer.bias")),
    "dense": ({"delay": 5, "keep_base_weights": True}, MLP, ("middle.oialr_weight",)),
    "saved": ({"r": 0.5, "modules_to_save": ["score"]}, MLP, ("score.weight",)),
    "norm": ({"r": 0.5}, WithNorm, ("norm.running_var",)),
}


def adapter(kind: str) -> nn.Module:
    """A model with an adapter of some training, on a base that does not change."""
    settings, make, _ = ADAPTERS[kind]
    model = base(kind)
    torch.manual_seed(1)
    model = get_peft_model(model, OIALRConfig(**settings))
    if make is WithNorm:
        model.train()(torch.randn(8, 12) * 3)
    disturb(model.eval())
    return model


def base(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return ADAPTERS[kind][1]()


def adapters(folder: Path, kind: str) -> Iterator[tuple[str, Change]]:
    """Damage to a sound adapter of a kind, which lies in `folder`."""
    for key in ADAPTERS[kind][2]:
        changes = TENSORS if "oialr_sigma" in key or "oialr_" not in key else TENSORS | BASES
        for what, change in changes.items():
            if what not in BASES or "oialr_weight" not in key:
                for keep in (True, False):
                    yield (
                        f"{WEIGHTS} {'damaged' if keep else 'rewritten'}: {key} {what}",
                        functools.partial(_change, change, PREFIX + key, WEIGHTS, keep),
                    )
    foreign = {"score.weight": torch.ones(4, 16), "first.base_layer.weight": torch.ones(24, 12), "what": torch.ones(2)}
    if kind != "rest":
        for key, tensor in foreign.items():
            add = functools.partial(_add, PREFIX + key, tensor)
            if kind != "saved" or key != "score.weight":
                yield f"{WEIGHTS}: carries {key}", functools.partial(_change, add, "", WEIGHTS, False)
    if kind == "plain":
        yield from bytes_of(folder / WEIGHTS, WEIGHTS, seed=1, flips=40)
        yield from headers(WEIGHTS)
        yield from fields_of(CONFIG, FIELDS)
        yield from text_of(CONFIG)


def _change(change, key: str, name: str, keep: bool, folder: Path) -> None:
    change_tensors(change, key, folder / name, keep)


def _add(key: str, tensor: torch.Tensor, tensors: dict[str, torch.Tensor], _: str) -> None:
    tensors[key] = tensor.clone()


def compressed_model() -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), OIALRConfig(r=0.25)).eval()
    disturb(model)
    return model


def write_compressed(folder: Path) -> None:
    save_compressed(compressed_model(), folder)


def compressed(folder: Path) -> Iterator[tuple[str, Change]]:
    """Damage to a sound compressed model, which lies in `folder`."""
    name = "model.safetensors"
    layer = "model.layers.0.mlp.up_proj"
    for key in (f"{layer}.down.weight", f"{layer}.up.weight", "model.embed_tokens.weight"):
        for what, change in TENSORS.items():
            if what not in ("infinite", "of another layer") and not (what == "float8" and "embed" in key):
                yield f"{name}: {key} {what}", functools.partial(_change, change, key, name, True)
                yield f"{name} without hashes: {key} {what}", functools.partial(_unhashed, change, key, name)
    yield from bytes_of(folder / name, name, seed=2, flips=30)
    yield from headers(name)
    yield from fields_of("config.json", ("layers", "attention", "format_version", "files"), "quantization_config")
    yield from text_of("config.json")
    for what, change in {
        "renamed": lambda layers: layers.update({"elsewhere": layers.pop(layer)}),
        "missing": lambda layers: layers.pop(layer),
        "of another rank": lambda layers: layers.update({layer: layers[layer] + 1}),
        "of rank 0": lambda layers: layers.update({layer: 0}),
        "of rank 40,000": lambda layers: layers.update({layer: 40_000}),
        "of a rank in words": lambda layers: layers.update({layer: "4"}),
        "a whole block": lambda layers: layers.update({"model.layers.0": 2}),
        "a norm": lambda layers: layers.update({"model.norm": 2}),
        "an embedding": lambda layers: layers.update({"model.embed_tokens": 2}),
    }.items():
        yield f"config.json: a layer {what}", functools.partial(_record, change)


def _unhashed(change, key: str, name: str, folder: Path) -> None:
    change_tensors(change, key, folder / name, keep=True)
    _edit_record(folder, lambda record: record.pop("files"))


def _record(change, folder: Path) -> None:
    _edit_record(folder, lambda record: change(record["layers"]))


def _edit_record(folder: Path, change) -> None:
    import json

    whole = json.loads((folder / "config.json").read_text())
    change(whole["quantization_config"])
    (folder / "config.json").write_text(json.dumps(whole))
