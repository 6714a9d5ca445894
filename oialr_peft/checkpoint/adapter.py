"""Adapters in files: PEFT's own saving and loading, with a draft before the one and a check before the other.

The weights file carries the config it was saved with and a hash of its tensors, so its rename is the one that decides:
before it the folder holds the old adapter, after it the new one, whichever adapter_config.json lies beside it
(config.py). The config file follows; then what else would be loaded in their place is removed.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError

from ..config import OIALRConfig
from ..files import ADAPTER_WEIGHTS, Draft, content_hash, read_header, seal
from ..weights import form_of
from .config import HASH, check_types, plain_pattern, saved_config
from .rest import PARTS, PEFT_PREFIX
from .tensors import check_factors_of


_CONFIG, _PICKLED = "adapter_config.json", "adapter_model.bin"
_UNREADABLE = (KeyError, EOFError, pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile)


def save_adapter(original: Callable[..., None], model: Any, *args: Any, **kwargs: Any) -> str | None:
    """PeftModel.save_pretrained: PEFT writes a draft, which takes the place of the folder's adapter once it is whole.

    Returns:
        The folder; None on processes that only help to gather the tensors.
    """
    call = inspect.signature(original).bind(model, *args, **kwargs)
    call.apply_defaults()
    folder = call.arguments["save_directory"]
    if not call.arguments["is_main_process"] or os.path.isfile(folder):
        return original(*call.args, **call.kwargs)
    with Draft(folder) as draft:
        call.arguments["save_directory"] = str(draft.path)
        original(*call.args, **call.kwargs)
        written = draft.files()
        for config in [name for name in written if Path(name).name == _CONFIG]:
            _seal(draft.path / Path(config).parent)
        draft.prove()
        for config in [name for name in written if Path(name).name == _CONFIG]:
            _place(draft, Path(config).parent)
    return folder


def _seal(folder: Path) -> None:
    """Complete a draft of PEFT: the config's patterns, and in the weights file the config and the hash."""
    config = json.loads((folder / _CONFIG).read_bytes())
    if config.get("peft_type") != "OIALR":
        return
    config["rank_pattern"] = plain_pattern(config)
    for name in ("target_modules", "exclude_modules"):  # sets, whose order is each process's own
        if isinstance(config.get(name), list):
            config[name].sort()
    if (weights := folder / ADAPTER_WEIGHTS).exists():
        config = seal(weights, folder / "sealed", config, HASH)
        os.replace(folder / "sealed", weights)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))


def _place(draft: Draft, folder: Path) -> None:
    pickled = (draft.path / folder / _PICKLED).exists()
    new, old = (_PICKLED, ADAPTER_WEIGHTS) if pickled else (ADAPTER_WEIGHTS, _PICKLED)
    with draft.alone():
        draft.place(str(folder / new))
        draft.place(str(folder / _CONFIG))
        (draft.target / folder / old).unlink(missing_ok=True)  # PEFT prefers safetensors, so only now


def check_saved(
    model_id: str | os.PathLike,
    *,
    values: bool = False,
    download: bool = False,
    into: OIALRConfig | None = None,
    **kwargs: Any,
) -> None:
    """Look at the files of a saved OIALR adapter before anything is made for it; other methods' are passed over.

    Args:
        model_id: folder, or repository on the Hub.
        values: whether to read the factors too, where nobody else will.
        download: get the files of a repository first, as PEFT would do next; otherwise they are passed over.
        into: the config of the live adapter that takes the tensors, if there is one.
        kwargs: those of PEFT's loading; the ones that say where on the Hub are taken.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    folder = Path(model_id, kwargs.get("subfolder") or "")
    if download and not folder.is_dir():
        wanted = {key: value for key, value in kwargs.items() if key in inspect.signature(hf_hub_download).parameters}
        with suppress(Exception):  # PEFT tries the same and says what is missing
            folder = Path(hf_hub_download(str(model_id), ADAPTER_WEIGHTS, **wanted)).parent
    if (file := folder / ADAPTER_WEIGHTS).is_file():
        if _is_ours(file):
            _check_weights(file)
            if into is not None:
                _refuse_other_mode(file, into)
            if values:
                check_factors_of(file)
                _refuse_without_bases(file)
    elif b'"OIALR"' in _read(folder / _CONFIG):
        if os.path.lexists(file) or not (folder / _PICKLED).is_file():
            raise FileNotFoundError(f"'{folder}' has no file {ADAPTER_WEIGHTS}. Save or download the adapter again.")
        _refuse_inflating(folder / _PICKLED)


def _refuse_other_mode(file: Path, live: OIALRConfig) -> None:
    """The tensors of both modes have the same names and shapes, and the live config says what they mean."""
    saved = _config_of(file)
    if saved and bool(saved.get("residual")) != live.residual:
        raise ValueError(
            f"'{file}' is an adapter with residual={not live.residual}, the live one has residual={live.residual}: "
            "its sigma would be taken for something else. Load it under another `adapter_name`."
        )


def _refuse_without_bases(file: Path) -> None:
    if not _config_of(file).get("save_bases", True):
        raise ValueError(
            f"'{file}' was saved without its bases (`save_bases=False`), and transformers' `load_adapter` asks nobody "
            "who could make them again. Use `PeftModel.from_pretrained(model, path)`, or save it with the bases."
        )


def _is_ours(file: Path) -> bool:
    if b'"OIALR"' in _read(file.with_name(_CONFIG)):
        return True
    with suppress(ValueError):
        return any(name.rpartition(".")[2] in PARTS for name in read_header(file)[0])
    return False


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


_checked: tuple[Any, ...] | None = None  # the last file found whole: loading asks more than once


def _check_weights(file: Path) -> None:
    global _checked
    state = file.stat()
    key = (os.path.realpath(file), state.st_mtime_ns, state.st_size, state.st_ino, _read(file.with_name(_CONFIG)))
    if key == _checked:
        return
    header, metadata = read_header(file)
    saved = saved_config(metadata, file)
    _check_parts(file, header, saved or _config_beside(file))
    if saved is not None and content_hash(file) != saved[HASH]:
        raise ValueError(
            f"'{file}' is damaged: its tensors are not those that were saved (another SHA-256). Save or download it "
            "again; the model is unchanged."
        )
    _checked = key


def _config_of(file: Path) -> dict[str, Any]:
    """The config that a file carries, else the one beside it."""
    return saved_config(read_header(file)[1], file) or _config_beside(file)


def _config_beside(file: Path) -> dict[str, Any]:
    """Of a file that carries none, as transformers' own `save_pretrained` writes it; {} if there is none to read."""
    # What is wrong with it is said where an adapter is made of it.
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        beside = json.loads(_read(file.with_name(_CONFIG)))
        check_types(beside)
        return beside
    return {}


def _check_parts(file: Path, header: dict[str, Any], saved: dict[str, Any]) -> None:
    held: dict[str, set[str]] = {}
    for key in header:
        name, _, part = key.rpartition(".")
        if part in PARTS:
            held.setdefault(name.removeprefix(PEFT_PREFIX), set()).add(part)
    for name, parts in held.items():
        form = form_of((saved.get("one_sided") or {}).get(name))
        needed = {slot.name for slot in (form.core, *(form.bases if saved.get("save_bases", True) else ()))}
        if parts != {"oialr_weight"} and (missing := sorted(needed - parts)):
            raise ValueError(
                f"The adapter file lacks the tensor '{name}.{missing[0]}' ('{file}'). It is incomplete or belongs to "
                "another model; the model is unchanged."
            )


def _refuse_inflating(file: Path) -> None:
    """torch writes its archives uncompressed; one that unfolds to more than its size was not written by it."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > file.stat().st_size:
                raise ValueError(f"'{file}' is larger unpacked than on disk, which torch never writes. It is damaged.")


def load_adapter(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """PeftModel.load_adapter: the files are checked first; one that fails later leaves no half-made adapter behind."""
    call = inspect.signature(original).bind(model, *args, **kwargs)
    model_id, name = call.arguments["model_id"], call.arguments["adapter_name"]
    known = name in model.peft_config
    if known and not isinstance(model.peft_config[name], OIALRConfig):
        return original(*call.args, **call.kwargs)
    live = model.peft_config[name] if known else None
    check_saved(model_id, download=known, into=live, **call.arguments.get("kwargs", {}))
    try:
        return original(*call.args, **call.kwargs)
    except Exception as error:
        if not known and name in model.peft_config and len(model.peft_config) > 1:
            with suppress(Exception):  # the base weights may be freed by now; the error is what matters
                model.delete_adapter(name)
        if isinstance(error, _UNREADABLE):
            raise ValueError(
                f"The adapter file in '{model_id}' is incomplete, damaged, or belongs to another model "
                f"({type(error).__name__}: {error}). Save or download it again."
            ) from error
        raise
