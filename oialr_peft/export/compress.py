"""save_compressed: a live model with an OIALR adapter as a stand-alone checkpoint of two-factor layers."""

from __future__ import annotations

import copy
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from ..cards import write_card
from ..layers import MultiheadAttention, OIALRLayer, active_layers
from .modules import two_weights
from .quantizer import CompressedConfig, CompressedQuantizer, shape_like


def save_compressed(
    model: nn.Module, path: str | os.PathLike, push_to_hub: bool = False, repo_id: str | None = None
) -> None:
    """Write a small model that needs no base: `import oialr_peft; AutoModelForX.from_pretrained(path)` loads it.

    Every layer of the active adapter is written as two factors (sigma folded into the smaller one, multiplied in
    float32 and cast once to the base weight's dtype), or dense where two factors would hold as much. Everything else
    is written as it is, `modules_to_save` in the place of what they replaced. Loading runs no SVD and forms no dense
    weight. The live model is not changed. The folder is filled only once all is written, so a full disk leaves the
    last good files.

    Args:
        model: a PEFT model around a transformers model, or a transformers model with an OIALR adapter.
        path: the folder; made if absent. What it holds of an earlier model is replaced, other files stay.
        push_to_hub: upload the folder in one commit, after it was written. Default `False`.
        repo_id: name of the repository on the Hub; default the folder's name.

    Raises:
        TypeError: no active OIALR adapter, or not a transformers model.
        ValueError: `path` is a file.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`path` must be a folder, but '{folder}' is a file.")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not isinstance(base, PreTrainedModel):
        raise TypeError(
            f"save_compressed writes transformers models; got {type(base).__name__}. Use "
            "`model.merge_and_unload()` and save the dense model in its own way."
        )
    if not active_layers(base):
        raise TypeError(f"{type(base).__name__} has no active OIALR adapter to compress.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        compressed(base).save_pretrained(draft)
        if (folder / "README.md").exists():
            shutil.copy(folder / "README.md", draft)
        write_card(model, draft, kind="compressed", repo_id=repo_id)
        _move(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if push_to_hub:
        api = HfApi()
        repository = api.create_repo(repo_id or folder.name, exist_ok=True).repo_id
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Upload compressed model")


def compressed(base: PreTrainedModel) -> PreTrainedModel:
    """A model of two-factor layers with the values of `base` and its active adapter; other tensors are shared."""
    tensors, layers = plain_tensors(base), {}
    for name, layer, adapter in active_layers(base):
        stored = layer.base_weight.dtype
        if not layer.is_factored(adapter) or not _gains(layer, adapter):
            tensors[f"{name}.weight"] = layer.adapter_weight(adapter)
            continue
        layers[name] = layer.rank(adapter)
        u, _, vh = (part.detach().float() for part in layer.factors(adapter))
        sigma = layer.matrix(adapter).float()
        left, right = (u @ sigma, vh) if u.numel() <= vh.numel() else (u, sigma @ vh)
        down, up = two_weights(layer.get_base_layer(), left, right)
        tensors.pop(f"{name}.weight", None)
        tensors[f"{name}.down.weight"] = down.to(stored).contiguous()
        tensors[f"{name}.up.weight"] = up.to(stored).contiguous()
        if f"{name}.bias" in tensors:
            tensors[f"{name}.up.bias"] = tensors.pop(f"{name}.bias")
    attention = [name for name, module in base.named_modules() if isinstance(module, MultiheadAttention)]
    config = CompressedConfig(layers, attention)
    model = _empty_like(base)
    shape_like(model, config)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    if absent := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise RuntimeError(f"{type(base).__name__}: no values were found for '{absent[0]}' ({len(absent)} tensors).")
    model.config.quantization_config = config
    model.hf_quantizer = cast(Any, CompressedQuantizer(config))
    return model


def plain_tensors(base: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model as if it had no adapters: base layers and saved modules under their original names."""
    skipped, renamed = [], {}
    for name, module in base.named_modules():
        if isinstance(module, OIALRLayer):
            skipped += [f"{name}.oialr_"]
            renamed[f"{name}.base_layer."] = f"{name}."
        elif isinstance(module, AuxiliaryTrainingWrapper):
            active = module.active_adapters[0]
            skipped += [f"{name}.original_module."]
            skipped += [f"{name}.modules_to_save.{other}." for other in module.modules_to_save if other != active]  # type: ignore[union-attr,attr-defined]
            renamed[f"{name}.modules_to_save.{active}."] = f"{name}."
    tensors = {}
    for key, tensor in base.state_dict().items():
        if not key.startswith(tuple(skipped)):
            old = next((prefix for prefix in renamed if key.startswith(prefix)), None)
            tensors[key if old is None else renamed[old] + key[len(old) :]] = tensor
    return tensors


def _gains(layer: OIALRLayer, adapter: str) -> bool:
    """Whether two factors hold fewer values than the dense weight."""
    *groups, rows, cols = layer.matrix_shape
    return math.prod(groups) * layer.rank(adapter) * (rows + cols) < math.prod(layer.weight_shape)


def _empty_like(base: PreTrainedModel) -> PreTrainedModel:
    config = copy.deepcopy(base.config)
    config.dtype = base.dtype
    with torch.device("meta"):
        model: Any = type(base)(config)
        model = model.to(base.dtype)
    if (generation := getattr(base, "generation_config", None)) is not None:
        model.generation_config = copy.deepcopy(generation)
    return model.eval()


def _move(draft: Path, folder: Path) -> None:
    """Files of the draft take the place of the folder's, weights before the config that names their layers."""
    if not folder.exists():
        os.replace(draft, folder)
        folder.chmod(0o755)
        return
    names = sorted((file.name for file in draft.iterdir()), key=lambda name: name == "config.json")
    for old in folder.iterdir():
        weights = old.name.startswith(("model", "pytorch_model", "adapter_")) and old.name not in names
        if weights and old.suffix in (".safetensors", ".bin", ".json"):
            old.unlink()
    for name in names:
        os.replace(draft / name, folder / name)
