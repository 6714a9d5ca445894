"""Saved adapters: written whole or not at all, checked before anything in the live model moves."""

from .complete import last_complete_checkpoint


__all__ = ["last_complete_checkpoint"]
