"""An adapter merged into its base model, written as the dense model that it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cards import empty_section
from .processing import warn_if_nothing_reads_inputs


def save_merged(model: Any, processing: Any, path: str) -> None:
    """Write `model.merge_and_unload()`, and the tokenizer or processor that belongs to it, to a folder.

    In a card that tells of an earlier model there our section is emptied. Where `processing` is None a warning, if the
    kind of model has one and the folder does not.
    """
    merged, folder = model.merge_and_unload(), Path(path)
    merged.save_pretrained(folder)
    if processing is not None:
        processing.save_pretrained(folder)
    else:
        warn_if_nothing_reads_inputs(merged, folder)
    empty_section(folder)
