"""What a checkpoint's files hold, read from their headers before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ..files import file_hash, read_header


_FLOATS = ("F64", "F32", "F16", "BF16")


def read_headers(files: Sequence[str] | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """{tensor: (the file that holds it, its entry in the header)} of a checkpoint's safetensors files.

    Args:
        files: `None` where transformers 4 does not tell them; nothing is read then.

    Raises:
        ValueError: naming a file that is damaged or cut off, or that the index names and nobody has.
    """
    entries = {}
    for file in files or ():
        if file.endswith(".safetensors"):
            if not os.path.isfile(file):
                raise ValueError(f"'{file}' is missing. Save or download the model again.")
            entries |= {key: (file, entry) for key, entry in read_header(file)[0].items()}
    return entries


def check_entries(
    entries: Mapping[str, tuple[str, dict[str, Any]]], tensors: Mapping[str, torch.Tensor], factors: Collection[str]
) -> None:
    """Refuse a factor of another shape, and whole numbers in the place of fractions, before anything is loaded.

    transformers names no file in its error, and casts silently. Other shapes are left to it: it may have been told to
    `ignore_mismatched_sizes`.

    Args:
        entries: of `read_headers`.
        tensors: the model's, by name.
        factors: names of those of two-factor layers.

    Raises:
        ValueError: naming the file and the tensor.
    """
    for key in entries.keys() & tensors.keys():
        file, entry = entries[key]
        if key in factors and entry["shape"] != list(tensors[key].shape):
            raise ValueError(
                f"Tensor '{key}' in '{file}' has shape {entry['shape']}; config.json makes it "
                f"{list(tensors[key].shape)}. The two files are of different saves, or one is damaged. Save or "
                "download both again."
            )
        if tensors[key].dtype.is_floating_point and entry["dtype"] not in _FLOATS:
            raise ValueError(
                f"Tensor '{key}' in '{file}' is of dtype {entry['dtype']}, but holds fractions in the model. The file "
                "is damaged; save or download it again."
            )


def refuse_dense(entries: Mapping[str, tuple[str, dict[str, Any]]], factors: Collection[str]) -> None:
    """Refuse the file of a dense model whose config is that of a compressed one.

    Raises:
        ValueError: naming the file, and how such a thing comes to be.
    """
    for factor in sorted(factors):
        name = f"{factor.removesuffix('.down.weight')}.weight"
        if factor.endswith(".down.weight") and factor not in entries and name in entries:
            raise ValueError(
                f"'{entries[name][0]}' lacks the tensor '{factor}' and has '{name}': the model is dense, and its "
                "config.json is that of a compressed one. A model that is made from such a config, and not loaded, "
                "needs `del config.quantization_config` first; in the folder delete `quantization_config`, "
                "`transformers_weights` and `torch_dtype` from config.json."
            )


def check_hashes(files: Sequence[str] | None, record: Mapping[str, str] | None) -> None:
    """Compare the files with the SHA-256 that config.json has of them, where it has one.

    Raises:
        ValueError: naming the file.
    """
    for name, expected in (record or {}).items():
        for file in files or ():
            if os.path.normpath(file).endswith(os.path.normpath(f"/{name}")) and file_hash(file) != expected:
                raise ValueError(
                    f"'{file}' is not the file that config.json was saved with: its SHA-256 is another. It was "
                    "damaged, or one of the two was replaced; save or download both again. If you changed the weights "
                    "yourself, delete `files` from the `quantization_config` in config.json."
                )
