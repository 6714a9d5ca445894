"""Model cards: facts of a live model -> metadata and template -> the README.md beside its files."""

from .facts import CardFacts, LayerFacts, gather
from .readme import card_text, write_card


__all__ = ["CardFacts", "LayerFacts", "card_text", "gather", "write_card"]
