"""What is used of transformers beyond its public surface. Seen in transformers 4.57 and 5."""

from __future__ import annotations

from typing import Any


def config_name(config: Any) -> str | None:
    """Where a config was loaded from. Models tell it as `name_or_path`; bodies of other libraries' models do not."""
    return getattr(config, "_name_or_path", None)
