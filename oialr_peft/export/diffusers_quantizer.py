"""diffusers' quantizer registry rebuilds two-factor layers, as transformers' does. Imported once diffusers is."""

from __future__ import annotations

from typing import Any

from diffusers.quantizers.base import DiffusersQuantizer

from ..compat.diffusers_ import forget_config_field
from .files import check_hashes
from .guard import METHOD
from .quantizer import as_dense, refuse_broken, refuse_missing, refuse_unclaimed, shape_like
from .record import CompressedConfig


class _Method(str):
    """diffusers takes the name of a method for a member of its enum."""

    @property
    def value(self) -> str:
        return str(self)


class DiffusersRecord(CompressedConfig):
    """What config.json of a model of diffusers says of its two-factor layers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quant_method = _Method(METHOD)


class CompressedDiffusersQuantizer(DiffusersQuantizer):
    """Loads and saves compressed models of diffusers, as `CompressedQuantizer` those of transformers."""

    quantization_config: Any
    requires_calibration = True  # only written by `save_compressed`

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def use_keep_in_fp32_modules(self) -> bool:
        return True

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Any) -> list[str]:
        check_hashes([str(file) for file in checkpoint_files or ()], self.quantization_config.files)
        self._loaded = loaded_keys
        return loaded_keys

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        shape_like(model, self.quantization_config)
        refuse_unclaimed(model, self._loaded)

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        refuse_missing(missing_keys)
        return missing_keys

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        refuse_broken(model)
        model.is_quantized = False  # it trains, casts and takes adapters like any other
        model.register_to_config(quantization_config=self.quantization_config)

    def _dequantize(self, model: Any) -> Any:
        forget_config_field(model, "quantization_config")
        return as_dense(model)
