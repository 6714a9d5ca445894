"""Ways to damage a saved model: its tensors, its bytes, the fields of its JSON."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


Change = Callable[[Path], object]
DEEP = "[" * 50_000 + "]" * 50_000
BOMB = "(a|aa)+$|(.*)*(.*)*(.*)*!|^(([a-z])+.)+[A-Z]([a-z])+$"

# Each takes the tensors and a key, and leaves them in a state that no save makes.
TENSORS: dict[str, Callable[[dict[str, torch.Tensor], str], object]] = {
    "deleted": lambda t, k: t.pop(k),
    "of another name": lambda t, k: t.update({k + "x": t.pop(k)}),
    "of another layer": lambda t, k: t.update({"base_model.model.nowhere." + k.rpartition(".")[2]: t.pop(k)}),
    "int8": lambda t, k: t.update({k: (t[k] * 8).to(torch.int8)}),
    "bool": lambda t, k: t.update({k: t[k] > 0}),
    "int64": lambda t, k: t.update({k: t[k].long()}),
    "float8": lambda t, k: t.update({k: t[k].to(torch.float8_e4m3fn)}),
    "NaN": lambda t, k: t[k].view(-1)[0].fill_(float("nan")),
    "infinite": lambda t, k: t[k].view(-1)[-1].fill_(float("inf")),
    "transposed and longer": lambda t, k: t.update({k: torch.cat([t[k].reshape(t[k].shape[::-1])] * 2)}),
    "a row more": lambda t, k: t.update({k: torch.cat([t[k], t[k][:1]])}),
    "a column less": lambda t, k: t.update({k: t[k][..., :-1].contiguous()}),
    "empty": lambda t, k: t.update({k: torch.empty(0)}),
    "a number": lambda t, k: t.update({k: torch.tensor(1.0)}),
    "in three dimensions": lambda t, k: t.update({k: t[k][None].contiguous()}),
    "a rank of 0": lambda t, k: t.update({k: t[k][..., :0].contiguous()}),
}
BASES: dict[str, Callable[[dict[str, torch.Tensor], str], object]] = {
    "scaled": lambda t, k: t[k].mul_(2),
    "zero": lambda t, k: t[k].zero_(),
    "random": lambda t, k: t[k].normal_(),
    "a little off": lambda t, k: t[k].add_(0.05 * torch.randn_like(t[k])),
    "of one direction": lambda t, k: t.update({k: torch.ones_like(t[k]) / t[k].shape[0] ** 0.5}),
}


def change_tensors(change: Callable[[dict[str, torch.Tensor], str], object], key: str, file: Path, keep: bool) -> None:
    """Rewrite a file with a change; `keep` its metadata, as damage does, or lose it, as other tools do."""
    torch.manual_seed(0)
    with safe_open(file, framework="pt") as opened:
        tensors, metadata = {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata()
    change(tensors, key)
    save_file(tensors, file, metadata if keep else {"format": "pt"})


def bytes_of(file: Path, name: str, seed: int, flips: int) -> Iterator[tuple[str, Change]]:
    """Damage to the bytes of a file: flips all over it, cuts, additions, other things in its place."""
    size, chance = file.stat().st_size, random.Random(seed)

    def flip(at: int) -> Change:
        return lambda folder: _edit(folder / name, lambda data: data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])

    for at in sorted(
        chance.sample(range(size), flips // 2) + chance.sample(range(min(size, 3000)), flips - flips // 2)
    ):
        yield f"{name}: byte {at} flipped", flip(at)
    for share in (0.0, 0.001, 0.05, 0.5, 0.9, 0.9999):
        cut = int(size * share)
        yield f"{name}: cut to {cut} bytes", lambda folder, cut=cut: os.truncate(folder / name, cut)
    yield f"{name}: longer", lambda folder: _edit(folder / name, lambda data: data + b"\0" * 64)
    yield f"{name}: random", lambda folder: _edit(folder / name, lambda data: random.Random(1).randbytes(len(data)))
    yield f"{name}: gone", lambda folder: (folder / name).unlink()
    yield f"{name}: a folder", lambda folder: ((folder / name).unlink(), (folder / name).mkdir())
    yield f"{name}: a link to itself", lambda folder: ((folder / name).unlink(), (folder / name).symlink_to(name))


def headers(name: str) -> Iterator[tuple[str, Change]]:
    """Safetensors files whose header lies."""

    def write(header: bytes, length: int | None = None, data: bytes = b"") -> Change:
        encoded = (len(header) if length is None else length).to_bytes(8, "little") + header + data
        return lambda folder: (folder / name).write_bytes(encoded)

    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    for what, header in {
        "no tensors": {},
        "a shape of a million millions": {"x": {**entry, "shape": [10**6, 10**6]}},
        "offsets beyond the end": {"x": {**entry, "data_offsets": [0, 10**12]}},
        "offsets that run backwards": {"x": {**entry, "data_offsets": [16, 0]}},
        "a negative shape": {"x": {**entry, "shape": [-2, -2]}},
        "a dtype of no kind": {"x": {**entry, "dtype": "F7"}},
        "a shape of words": {"x": {**entry, "shape": ["2", "2"]}},
        "no shape": {"x": {"dtype": "F32", "data_offsets": [0, 16]}},
        "tensors that overlap": {"x": entry, "y": entry},
        "an entry that is a list": {"x": [1, 2]},
        "metadata of numbers": {"__metadata__": {"oialr_config": 5}, "x": entry},
        "a config that is none": {"__metadata__": {"oialr_config": "{"}, "x": entry},
        "a list": [1],
    }.items():
        yield f"{name}: header with {what}", write(json.dumps(header).encode(), data=b"\0" * 16)
    yield f"{name}: header of 2^62 bytes", write(b"{}", 1 << 62)
    yield f"{name}: header of 90 MB that is not there", write(b"{}", 90_000_000)
    yield f"{name}: deep header", write(DEEP.encode())
    yield f"{name}: header of nothing", write(b"")


VALUES: dict[str, Any] = {
    "null": None,
    "a number": 5,
    "minus one": -1,
    "a fraction": 0.5,
    "a huge number": 10**30,
    "infinity": float("inf"),
    "a word": "word",
    "a bomb": BOMB,
    "an empty list": [],
    "a list of lists": [[[]]],
    "an empty object": {},
    "an object of lists": {"middle": [1], "(.*)*": "x"},
    "true": True,
}


def fields_of(name: str, fields: tuple[str, ...], inside: str | None = None) -> Iterator[tuple[str, Change]]:
    """Every field of a JSON object with every kind of value, and without it."""

    def put(field: str, value: Any, delete: bool = False) -> Change:
        def change(folder: Path) -> None:
            whole = json.loads((folder / name).read_text())
            place = whole[inside] if inside else whole
            place[field] = value
            if delete:
                del place[field]
            (folder / name).write_text(json.dumps(whole))

        return change

    for field in fields:
        yield f"{name}: no {field}", put(field, None, delete=True)
        for what, value in VALUES.items():
            yield f"{name}: {field} = {what}", put(field, value)


def text_of(name: str) -> Iterator[tuple[str, Change]]:
    """Damage to a JSON file as text."""
    for what, text in {
        "empty": b"",
        "a list": b"[]",
        "a number": b"5",
        "null": b"null",
        "deep": DEEP.encode(),
        "not UTF-8": b"\xff\xfe{}\x00",
        "an empty object": b"{}",
        "a number of 5,000 digits": b'{"peft_type": "OIALR", "r": ' + b"1" * 5000 + b"}",
    }.items():
        yield f"{name}: {what}", lambda folder, text=text: (folder / name).write_bytes(text)
    yield f"{name}: cut in half", lambda folder: _edit(folder / name, lambda data: data[: len(data) // 2])
    yield f"{name}: gone", lambda folder: (folder / name).unlink()


def _edit(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))
