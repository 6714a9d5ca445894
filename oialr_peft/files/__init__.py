"""Files on disk: written so that a kill or a full disk loses nothing, read so that damage is noticed."""

from .draft import SHELF, Draft, is_draft, is_shelf, remove_left_overs, replace_file
from .tensors_file import ADAPTER_WEIGHTS, CONFIG_KEY, content_hash, file_hash, read_header, seal


__all__ = [
    "ADAPTER_WEIGHTS",
    "CONFIG_KEY",
    "SHELF",
    "Draft",
    "content_hash",
    "file_hash",
    "is_draft",
    "is_shelf",
    "read_header",
    "remove_left_overs",
    "replace_file",
    "seal",
]
