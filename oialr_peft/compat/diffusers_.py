"""What is used of diffusers beyond its public surface. Seen in diffusers 0.42."""

from __future__ import annotations

from typing import Any


def forget_config_field(model: Any, name: str) -> None:
    """Take a field out of a model's config: `register_to_config` can only add. Can go once it can remove."""
    kept = {key: value for key, value in model.config.items() if key != name}
    model._internal_dict = type(model.config)(kept)
