"""The README.md beside saved files: ours is written and refreshed, a user's stays theirs."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import yaml
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..errors import OIALRWarning
from .facts import CardFacts, Kind, gather
from .metadata import complete, metadata


_TEMPLATE = Path(__file__).with_name("card.md")
_SECTION = re.compile(r"<!-- oialr_peft: begin\b.*?<!-- oialr_peft: end -->", re.DOTALL)
_TRAINER_COMMENT = "This model card has been generated automatically according to the information the Trainer"
_PUSH_SENTENCE = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."


def card_text(
    model: nn.Module,
    kind: Kind = "adapter",
    *,
    repo_id: str | None = None,
    results: Mapping[str, float] | None = None,
    existing: str | None = None,
) -> str:
    """The README.md text for a live model with an OIALR adapter.

    Args:
        kind: what the files hold: `"adapter"` (default), or `"compressed"` for a stand-alone checkpoint.
        repo_id: the Hub repository they go to, shown in the code that loads them. `None`: a placeholder.
        results: {name: figure} for a table of results. `None`: no table.
        existing: the README so far. Only the section between our two comments is refreshed and missing metadata is
            added. Without the comments the text stays as it is, unless it is the blank form of transformers or comes
            from the Trainer. To have the section in a README of your own, put an empty pair of the comments into it:
            `<!-- oialr_peft: begin --><!-- oialr_peft: end -->`.

    Raises:
        ValueError, yaml.YAMLError: the metadata of `existing` cannot be read.
    """
    fresh = _render(gather(model, kind, repo_id, results))
    return str(fresh) if existing is None else _merge(existing, fresh)


def write_card(
    model: nn.Module,
    folder: str | os.PathLike,
    kind: Kind = "adapter",
    *,
    repo_id: str | None = None,
    results: Mapping[str, float] | None = None,
) -> None:
    """Write or refresh `folder`/README.md; the arguments are those of `card_text`.

    A README whose metadata cannot be read is left as it is, with a warning: a card must not cost anyone the weights.
    """
    path = Path(folder, "README.md")
    # Bytes, so that a user's line ends survive.
    existing = path.read_bytes().decode("utf-8-sig") if path.exists() else None
    try:
        text = card_text(model, kind, repo_id=repo_id, results=results, existing=existing)
    except (ValueError, yaml.YAMLError) as error:
        warnings.warn(
            f"'{path}' was left as it is: its metadata cannot be read ({error}).", OIALRWarning, stacklevel=2
        )
        return
    if text != existing:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def _render(facts: CardFacts) -> ModelCard:
    return ModelCard.from_template(metadata(facts), template_path=str(_TEMPLATE), facts=facts)


def _merge(existing: str, fresh: ModelCard) -> str:
    """`existing` with our section and missing metadata brought up to date; the same string where nothing changes."""
    card = ModelCard(existing)
    data, own = cast(ModelCardData, card.data), cast(ModelCardData, fresh.data)
    before, text = data.to_dict(), card.text
    section = _SECTION.search(fresh.text)
    assert section is not None
    if _is_blank_template(text):
        own.tags = sorted(set((own.tags or []) + (data.tags or [])))
        return str(fresh)
    if _SECTION.search(text):
        card.text = _SECTION.sub(lambda _: section.group(), text)
    elif _TRAINER_COMMENT in text:
        card.text = f"{text.rstrip()}\n\n{section.group()}\n"
    complete(data, own)
    return existing if (data.to_dict(), card.text) == (before, text) else str(card)


def _is_blank_template(text: str) -> bool:
    """Whether this is the form with blanks that `push_to_hub` of transformers writes, with nothing filled in."""

    def lines(of: str) -> list[str]:
        return [line.strip() for line in of.splitlines() if line.strip() and not line.startswith(_PUSH_SENTENCE)]

    return lines(text) == lines(ModelCard.from_template(ModelCardData()).text)
