"""A draft of a compressed model takes the place of a folder's earlier model, whole: one rename of config.json decides.

`config.json` names the weights files with their SHA-256. In this order, each step whole on its own:

1. The weights go into the folder on a shelf, a folder of a new name that nothing names yet.
2. `config.json` is replaced by one that names the files on the shelf: the switch. Before it the folder holds the
   earlier model, whatever kind that was; after it the new one.
3. The earlier model's files are removed.
4. The files get their usual names beside those on the shelf (hard links), `config.json` is replaced by one with these
   names, and the shelf is removed. Where a filesystem has no links the model stays on its shelf, and loads from there.
5. Tokenizer, generation settings and the like follow.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import Draft, file_hash, is_shelf


# Files of an earlier model, which would be loaded in the place of the new ones.
EARLIER = re.compile(
    r"adapter_config\.json|adapter_model\.(safetensors|bin)"
    r"|(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?"
)
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_INDEX = ".index.json"


def publish(draft: Draft) -> list[str]:
    """Put a draft, as `save_pretrained` of transformers wrote it, in the place of the folder's model.

    Returns:
        The names of the files in the folder that are the new model's.
    """
    names = draft.files()
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    others = [name for name in names if name not in (*weights, "config.json")]
    config = json.loads((draft.path / "config.json").read_bytes())
    shelf = draft.shelf()
    for name in weights:
        os.chmod(draft.path / name, (draft.path / "config.json").stat().st_mode)  # safetensors makes private files
        os.replace(draft.path / name, draft.path / shelf / name)
    hashes = {name: file_hash(draft.path / shelf / name) for name in weights if not name.endswith(_INDEX)}
    index = next((json.loads((draft.path / shelf / n).read_bytes()) for n in weights if n.endswith(_INDEX)), None)
    _name_weights(draft.path, config, index, hashes, f"{shelf}/")
    draft.prove()
    with draft.alone():
        try:
            draft.place(shelf)
            draft.place("config.json")
        except BaseException:
            draft.drop(shelf)
            raise
        _remove_earlier(draft.target, shelf)
        with suppress(OSError):  # no links here, or no room for another config.json
            _use_usual_names(draft, config, index, hashes, shelf)
        for name in others:
            draft.place(name)
        record = json.loads((draft.target / "config.json").read_bytes())["quantization_config"]["files"]
    return ["config.json", *others, *record]


def _name_weights(
    folder: Path, config: dict[str, Any], index: dict[str, Any] | None, hashes: dict[str, str], prefix: str
) -> None:
    """Write `config.json`, and the index of several files, with the names that the files have under `prefix`."""
    record = {f"{prefix}{name}": found for name, found in hashes.items()}
    if index is not None:
        name = f"{prefix}model.safetensors{_INDEX}"
        weight_map = {key: f"{prefix}{file}" for key, file in index["weight_map"].items()}
        (folder / name).write_text(json.dumps({**index, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n")
        record[name] = file_hash(folder / name)
    quantization = {**config["quantization_config"], "files": record}
    text = json.dumps({**config, "quantization_config": quantization}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n")


def _remove_earlier(folder: Path, shelf: str) -> None:
    # First the adapter's config: with it there, but not its weights, transformers looks for these.
    for old in sorted(folder.iterdir(), key=lambda old: old.name != "adapter_config.json"):
        if EARLIER.fullmatch(old.name) and not old.is_dir():
            old.unlink()
        elif old.name != shelf and is_shelf(old):
            shutil.rmtree(old, ignore_errors=True)


def _use_usual_names(
    draft: Draft, config: dict[str, Any], index: dict[str, Any] | None, hashes: dict[str, str], shelf: str
) -> None:
    for name in hashes:
        os.link(draft.target / shelf / name, draft.target / name)
    _name_weights(draft.path, config, index, hashes, "")
    if index is not None:
        draft.place(f"model.safetensors{_INDEX}")
    draft.place("config.json")
    draft.drop(shelf)
