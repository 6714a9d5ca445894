"""Numbers as people read them."""

from __future__ import annotations


def short(count: float, unit: str = "B") -> str:
    """A count with a decimal prefix: 12.3 MB."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while count >= 999.5 and len(prefixes) > 1:
        count, prefixes = count / 1000, prefixes[1:]
    return f"{count:.3g} {prefixes[0]}{unit}"
