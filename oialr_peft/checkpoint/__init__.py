"""Saved adapters: written whole or not at all, checked before anything in the live model moves."""

from .complete import last_complete_checkpoint
from .rest import cut_to_live, rest_keys, running_statistics
from .tensors import check_file, file_ranks


__all__ = ["check_file", "cut_to_live", "file_ranks", "last_complete_checkpoint", "rest_keys", "running_statistics"]
