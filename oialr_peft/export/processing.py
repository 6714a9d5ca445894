"""The tokenizer or processor beside a model: whether a place has one, and words where none has."""

from __future__ import annotations

import contextlib
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from ..errors import tell


_READERS = {  # modules of transformers.models.auto, and their tables of model types
    "tokenization_auto": "TOKENIZER_MAPPING_NAMES",
    "image_processing_auto": "IMAGE_PROCESSOR_MAPPING_NAMES",
    "feature_extraction_auto": "FEATURE_EXTRACTOR_MAPPING_NAMES",
}
# What transformers writes of processors and feature extractors, and of tokenizers; of old ones there is a vocabulary.
_OF_INPUTS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_OF_WORDS = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tekken.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "source.spm",
)


def has_processing(place: str | os.PathLike) -> bool:
    """Whether a folder, or a repository of the Hub, has files of a tokenizer or processor.

    To load one tells nothing: transformers 5 makes an empty tokenizer where there is a config.json alone.
    """
    return _has(place, _OF_WORDS) or _has(place, _OF_INPUTS)


def processing_of(*places: str) -> Any:
    """The tokenizer or processor of the first place that has one; None where none has."""
    # On first use: whole tables.
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer

    for place in places:
        kinds: tuple[Any, ...] = ()
        if _has(place, _OF_WORDS):
            kinds = (AutoProcessor, AutoTokenizer)  # of transformers 4 the first one needs a config.json
        elif _has(place, _OF_INPUTS):  # of a pair AutoProcessor would make up the tokenizer
            kinds = (AutoImageProcessor, AutoFeatureExtractor)
        for kind in kinds:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return kind.from_pretrained(place)
    return None


def warn_if_nothing_reads_inputs(base: PreTrainedModel, folder: Path) -> None:
    """Say so where the folder lacks a tokenizer or processor that this kind of model has."""
    kinds: set[str] = set()
    for module, table in _READERS.items():
        with contextlib.suppress(ImportError):  # transformers 5.17 gates one of them behind torchvision
            kinds.update(getattr(import_module(f"transformers.models.auto.{module}"), table))
    if base.config.model_type in kinds and not has_processing(folder):
        tell(
            f"'{folder}' has no tokenizer or processor, and a pipeline would make up an empty one: pass it as "
            "`processing_class`, or save it there."
        )


def _has(place: str | os.PathLike, names: tuple[str, ...]) -> bool:
    """Whether a place has any of these files."""
    if os.path.isdir(place):
        return any(os.path.isfile(os.path.join(place, name)) for name in names)
    for name in names:
        with contextlib.suppress(OSError, ValueError):  # no such file, no such repository, no network
            if cached_file(place, name) is not None:
                return True
    return False
