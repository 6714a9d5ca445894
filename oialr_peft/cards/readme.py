"""The README.md beside saved files: ours is written and refreshed, a user's stays theirs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import yaml
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..errors import tell
from ..files import remove_left_overs, replace_file
from .facts import CardFacts, Saved, gather
from .metadata import complete, metadata


_TEMPLATE = Path(__file__).with_name("card.md")
_BEGIN = re.compile(r"<!-- oialr_peft: begin\b")
_END = "<!-- oialr_peft: end -->"
_EMPTY = f"<!-- oialr_peft: begin -->{_END}"
_LARGEST_METADATA = 1 << 16  # characters; the Hub's own patterns take quadratic time in them
_TRAINER_COMMENT = "This model card has been generated automatically according to the information the Trainer"
_PUSH_SENTENCE = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."


def card_text(
    model: nn.Module,
    kind: Saved = "adapter",
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
    kind: Saved = "adapter",
    *,
    repo_id: str | None = None,
    results: Mapping[str, float] | None = None,
) -> bool:
    """Write or refresh `folder`/README.md, and tell whether it is up to date; the arguments are those of `card_text`.

    The file is replaced whole or not at all, and whatever goes wrong is a warning: a card must not cost anyone the
    weights that were saved before it.
    """
    return _rewrite(
        Path(folder, "README.md"),
        lambda existing: card_text(model, kind, repo_id=repo_id, results=results, existing=existing),
    )


def empty_section(folder: str | os.PathLike) -> None:
    """Empty our section of `folder`/README.md, if it has one, for files that it does not describe; the rest stays.

    The two comments stay, so that `write_card` fills them again. What goes wrong is a warning, as there.
    """
    path = Path(folder, "README.md")
    if path.exists():
        _rewrite(path, lambda existing: _with_sections(existing or "", _EMPTY))


def _rewrite(path: Path, change: Callable[[str | None], str]) -> bool:
    """Replace a README by what `change` makes of its text, None where there is none; False where that failed."""
    try:
        # Bytes, so that a user's line ends survive.
        existing = path.read_bytes().decode("utf-8-sig") if path.exists() else None
        text = change(existing)
        if text != existing:
            replace_file(path, text.encode())
        else:
            remove_left_overs(path.parent)
        return True
    except Exception as error:
        unreadable = isinstance(error, (ValueError, TypeError, AttributeError, yaml.YAMLError))
        reason = "its metadata cannot be read" if unreadable else "it cannot be written"
        tell(f"'{path}' was left as it is: {reason} ({error}).")
        return False


def _render(facts: CardFacts) -> ModelCard:
    return ModelCard.from_template(metadata(facts), template_path=str(_TEMPLATE), facts=facts, inline=_inline)


def _inline(value: object) -> str:
    """A name or value as it may stand in a line, a table or backticks of the card, without ending any of them."""
    text = str(value).replace("<!--", "< !--").replace("-->", "-- >").replace("`", "'").replace("|", "\\|")
    return " ".join(text.split())


def _sections(text: str) -> list[tuple[int, int]]:
    """Where our sections begin and end, marks included, in linear time."""
    found, at = [], 0
    while begin := _BEGIN.search(text, at):
        end = text.find(_END, begin.end())
        if end < 0:
            break
        at = end + len(_END)
        found.append((begin.start(), at))
    return found


def _with_sections(text: str, section: str) -> str:
    """The text with `section` in the place of each of ours."""
    edges = [0, *(edge for place in _sections(text) for edge in place), len(text)]
    return section.join(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))


def _check_metadata(text: str) -> None:
    """Refuse metadata that is very long or refers to itself: reading it takes a time that grows without bounds."""
    if not text.lstrip().startswith("---"):
        return
    block = text.lstrip()[3:].partition("\n---")[0]
    if len(block) > _LARGEST_METADATA or re.search(r"[\r\n]{1000}", block):
        raise ValueError("it is longer than any the Hub takes")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(block)):
        raise ValueError("it has YAML aliases")


def _merge(existing: str, fresh: ModelCard) -> str:
    """`existing` with our section and missing metadata brought up to date; the same string where nothing changes."""
    _check_metadata(existing)
    card = ModelCard(existing)
    data, own = cast(ModelCardData, card.data), cast(ModelCardData, fresh.data)
    before, text = data.to_dict(), card.text
    (begin, end), *_ = _sections(fresh.text)
    section = fresh.text[begin:end]
    if _is_blank_template(text):
        own.tags = sorted(set((own.tags or []) + (data.tags or [])))
        return str(fresh)
    if _sections(text):
        card.text = _with_sections(text, section)
    elif _TRAINER_COMMENT in text:
        card.text = f"{text.rstrip()}\n\n{section}\n"
    complete(data, own)
    return existing if (data.to_dict(), card.text) == (before, text) else str(card)


def _is_blank_template(text: str) -> bool:
    """Whether this is the form with blanks that `push_to_hub` of transformers writes, with nothing filled in."""

    def lines(of: str) -> list[str]:
        return [line.strip() for line in of.splitlines() if line.strip() and not line.startswith(_PUSH_SENTENCE)]

    return lines(text) == lines(ModelCard.from_template(ModelCardData()).text)
