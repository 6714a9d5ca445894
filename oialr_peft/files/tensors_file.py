"""Safetensors files as bytes: their header, a hash of what they hold, and that hash kept in the header."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO


ADAPTER_WEIGHTS = "adapter_model.safetensors"
CONFIG_KEY = "oialr_config"  # in the metadata of an adapter file: the text of the adapter_config.json saved with it
_CHUNK = 1 << 24
_SIZES = {  # bytes of one number
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_LARGEST_HEADER = 100_000_000  # as in safetensors itself


def read_header(path: str | os.PathLike) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """({tensor name: its dtype, shape and data_offsets}, metadata) of a file, whose length is checked.

    Raises:
        ValueError: naming the file, which is cut off or no safetensors file.
    """
    with open(path, "rb") as file:
        header, start = _header(file, path)
    metadata = header.pop("__metadata__", None) or {}
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if (
            entry["dtype"] not in _SIZES
            or begin != at
            or end - begin != math.prod(entry["shape"]) * _SIZES[entry["dtype"]]
        ):
            raise ValueError(_damaged(path, f"the entry of {name!r} in its header is wrong"))
        at = end
    if os.path.getsize(path) != start + at:
        raise ValueError(_damaged(path, "its length is not what its header says"))
    return header, metadata


def _header(file: BinaryIO, path: str | os.PathLike) -> tuple[dict[str, Any], int]:
    """The header as JSON and where the data begins."""
    length = int.from_bytes(first, "little") if len(first := file.read(8)) == 8 else _LARGEST_HEADER + 1
    if length > min(_LARGEST_HEADER, os.path.getsize(path)):
        raise ValueError(_damaged(path, "it has no header"))
    try:
        header = json.loads(file.read(length))
        metadata = header.get("__metadata__") or {}
        sound = all(isinstance(value, str) for value in metadata.values())
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                numbers = [begin, end, *entry["shape"]]
                sound &= isinstance(entry["dtype"], str) and all(type(n) is int and n >= 0 for n in numbers)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(_damaged(path, "its header cannot be read")) from error
    if not sound:
        raise ValueError(_damaged(path, "its header cannot be read"))
    return header, 8 + length


def _damaged(path: str | os.PathLike, why: str) -> str:
    return f"'{path}' is damaged or cut off: {why}. Save or download it again."


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a whole file, as `sha256sum` and the Hub show it."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def content_hash(path: str | os.PathLike) -> str:
    """SHA-256 of the tensors of a file: their names, dtypes, shapes and values, without the metadata."""
    with open(path, "rb") as file:
        header, _ = _header(file, path)
        found = _begin_hash(header)
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _begin_hash(header: dict[str, Any]) -> Any:
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())


def seal(source: Path, destination: Path, config: dict[str, Any], field: str) -> dict[str, Any]:
    """Copy an adapter file with its config in the metadata, and in the config's `field` the hash of the tensors.

    So the one file tells of itself what belongs to it and whether it is whole. Returns the config with the hash.
    """
    with open(source, "rb") as old, open(destination, "wb") as new:
        header, _ = _header(old, source)
        found, placeholder = _begin_hash(header), "0" * 64
        text = json.dumps({**config, field: placeholder}, indent=2, sort_keys=True)
        metadata = {**(header.get("__metadata__") or {}), CONFIG_KEY: text}
        encoded = json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # data begins at a multiple of 8
        new.write(len(encoded).to_bytes(8, "little") + encoded)
        while chunk := old.read(_CHUNK):
            found.update(chunk)
            new.write(chunk)
        new.seek(8 + encoded.index(placeholder.encode()))
        new.write(found.hexdigest().encode())
    return {**config, field: found.hexdigest()}
