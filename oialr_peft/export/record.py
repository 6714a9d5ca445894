"""What config.json says of a compressed model."""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from .guard import METHOD


FORMAT_VERSION = 1


class CompressedConfig(QuantizationConfigMixin):
    """What config.json says of a compressed model: its two-factor layers, in transformers' place for such things.

    Args:
        layers: {module name: rank} of the layers held as two factors.
        attention: names of the modules that are taken apart into layers: nn.MultiheadAttention, fused experts.
        format_version: of this record; a newer one is refused.
        files: {weights file: its SHA-256}, written and read with the files themselves (publish.py), never with a
            config alone.

    Raises:
        ValueError: naming the field of a damaged record.
    """

    quant_method: Any

    def __init__(
        self,
        layers: dict[str, int] | None = None,
        attention: list[str] | None = None,
        format_version: int = FORMAT_VERSION,
        files: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_record(layers, attention, files)
        self.quant_method = METHOD
        self.layers = dict(layers or {})
        self.attention = list(attention or [])
        self.format_version = format_version
        self.files = dict(files or {})

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "files"}


def _check_record(layers: Any, attention: Any, files: Any) -> None:
    """Refuse a record whose fields are of other types; ranks are checked where the layers' sizes are known."""
    for name, value, kind, rule in (
        ("layers", layers, dict, "an object {layer name: rank}"),
        ("attention", attention, list, "a list of names"),
        ("files", files, dict, "an object {file name: SHA-256}"),
    ):
        entries = list(value) if isinstance(value, kind) else []
        if name == "files" and isinstance(value, dict):
            entries += value.values()
        if not (value is None or isinstance(value, kind)) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError(
                f"`{name}` in the `quantization_config` of config.json must be {rule}; got {str(value)[:200]}. The "
                "file is damaged; save or download the model again."
            )
