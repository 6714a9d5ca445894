"""Model cards: facts of a live model -> metadata and template -> the README.md beside its files."""

from .facts import CardFacts, LayerRow, gather
from .readme import card_text, empty_section, write_card


__all__ = ["CardFacts", "LayerRow", "card_text", "empty_section", "gather", "write_card"]
