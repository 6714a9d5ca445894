"""What a card tells, gathered from a live model."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, cast

from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import PeftConfig, PeftModel
from torch import nn

from ..compat.transformers_ import config_name
from ..config import WRITTEN, OIALRConfig
from ..layer import adapted_weights
from ..report.ranks import rank_report
from ..weights import AdaptedWeight


Saved = Literal["adapter", "compressed"]

_PACKAGES = ("oialr-peft", "peft", "transformers", "torch")
_TASKS = {  # PEFT's task type: the Hub's pipeline tag, where the first settles the second
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}


@dataclass(frozen=True)
class LayerRow:
    """One targeted layer as the files hold it; `rank` is None where it is dense, `dense` counts its dense weight."""

    name: str
    shape: tuple[int, ...]
    rank: int | None
    full_rank: int
    parameters: int
    dense: int


@dataclass(frozen=True)
class CardFacts:
    """Everything that the template and the metadata may use.

    `base`: Hub id of the base model, None for a local one, or one built from a config. `library`: the package that has
    `model_class` as a public name, None for a class of the user's own. `settings`: what differs from OIALRConfig's
    defaults. `results`: as the caller gave them.
    """

    kind: Saved
    model_class: str
    library: str | None
    base: str | None
    pipeline_tag: str | None
    tags: list[str]
    train_rest: bool
    layers: list[LayerRow]
    trainable: int
    total: int
    settings: dict[str, Any]
    versions: dict[str, str]
    results: dict[str, float] = field(default_factory=dict)
    repo_id: str | None = None

    @property
    def held(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def dense(self) -> int:
        return sum(layer.dense for layer in self.layers)


def gather(
    model: nn.Module, kind: Saved, repo_id: str | None = None, results: Mapping[str, float] | None = None
) -> CardFacts:
    """The facts of a model with an OIALR adapter (a PeftModel, or a model of transformers with one added)."""
    found = adapted_weights(model)
    configs = cast("Mapping[str, PeftConfig]", getattr(model, "peft_config", {}))
    config = next((c for c in configs.values() if isinstance(c, OIALRConfig)), OIALRConfig())
    config = next((configs[weight.adapter] for weight in found.values()), config)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = [_layer(name, weight, kind, cast(OIALRConfig, config).save_bases) for name, weight in found.items()]
    report = rank_report(model) if found else None
    return CardFacts(
        kind=kind,
        model_class=type(base).__name__,
        library=_library(type(base)),
        base=hub_id(_name(base) or config.base_model_name_or_path),
        pipeline_tag=_TASKS.get(str(getattr(config.task_type, "value", config.task_type))),
        tags=[tag for tag in getattr(base, "model_tags", None) or [] if isinstance(tag, str)],
        train_rest=cast(OIALRConfig, config).train_rest,
        layers=layers,
        trainable=report.trainable if report else 0,
        total=report.total if report else 0,
        settings=_settings(cast(OIALRConfig, config), {layer.name for layer in layers}),
        versions=_versions(),
        results=dict(results or {}),
        repo_id=repo_id,
    )


def hub_id(name: str | None) -> str | None:
    """The name if the Hub takes it for a model id; None if it is empty, a folder here, or of another form."""
    if not name or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _layer(name: str, weight: AdaptedWeight, kind: Saved, with_bases: bool) -> LayerRow:
    dense = math.prod(weight.shape)
    rank, held = None, dense
    if weight.is_factored and (kind == "adapter" or weight.pair_is_smaller):
        rank = weight.rank
        in_adapter = weight.held_size if with_bases else weight.trainable_size
        held = in_adapter if kind == "adapter" else weight.stored_size
    return LayerRow(name, weight.shape, rank, weight.full_rank, held, dense)


def _library(cls: type) -> str | None:
    package = cls.__module__.partition(".")[0]
    known = package in ("transformers", "diffusers") and hasattr(import_module(package), cls.__name__)
    return package if known else None


def _name(base: nn.Module) -> str | None:
    name = getattr(base, "name_or_path", None) or config_name(getattr(base, "config", None))
    return name if isinstance(name, str) else None


def _settings(config: OIALRConfig, targets: set[str]) -> dict[str, Any]:
    """OIALR's own fields that differ from their defaults; `target_modules` only where the user chose them."""
    own = {f.name for f in fields(OIALRConfig)} - {f.name for f in fields(PeftConfig)} - {*WRITTEN}
    default = OIALRConfig()
    changed = {name: getattr(config, name) for name in sorted(own) if getattr(config, name) != getattr(default, name)}
    if changed.get("target_modules") == targets:
        del changed["target_modules"]  # PEFT's way to keep what `None` selected
    return {name: _as_list(value) for name, value in changed.items()}


def _as_list(value: Any) -> Any:
    """Sets in order; lists without repetition: PEFT adds the names of heads at every loading."""
    if isinstance(value, set):
        return sorted(value)
    return list(dict.fromkeys(value)) if isinstance(value, list) else value


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            continue
    return found
