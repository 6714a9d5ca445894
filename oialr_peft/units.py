"""Numbers and lists of names as people read them."""

from __future__ import annotations

from collections.abc import Iterable


def short(count: float, unit: str = "B") -> str:
    """A count with a decimal prefix: 12.3 MB."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while count >= 999.5 and len(prefixes) > 1:
        count, prefixes = count / 1000, prefixes[1:]
    return f"{count:.3g} {prefixes[0]}{unit}"


def ends(names: Iterable[str]) -> str:
    """The first and the last of some names."""
    names = list(names)
    return " and ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"


def beginnings(key: str) -> list[str]:
    """Of a dotted name, each with its last dot, the shortest first."""
    return [key[: place + 1] for place, letter in enumerate(key) if letter == "."]
