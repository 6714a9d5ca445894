"""Compressed models in vLLM, by its registry of quantisation methods from outside. vLLM finds `register` by the entry
point of this package in the group `vllm.general_plugins`. Seen in vLLM 0.33."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.models.utils import WeightsMapper

from .guard import METHOD


_SHARDS = {None: 0, "q": 0, "k": 1, "v": 2}  # of a fused layer, by the ids that vLLM has for them; others are numbers


def register() -> None:
    """Make the method known; vLLM calls this in each of its processes, and it may be called again."""
    register_quantization_config(METHOD)(FactoredConfig)


class FactoredConfig(QuantizationConfig):
    """Which layers are held as two factors, and at which rank: what config.json of a compressed model says.

    Raises:
        ValueError: the model holds attention or experts that were taken apart, which vLLM's models have as one.
    """

    def __init__(self, layers: dict[str, int]) -> None:
        super().__init__()
        self.layers = layers

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FactoredConfig:
        if config.get("attention"):
            raise ValueError(
                f"'{config['attention'][0]}' was taken apart into layers, which this plug-in cannot serve. Serve "
                "`model.dequantize()`, saved by `save_pretrained`."
            )
        return cls(config["layers"])

    def get_name(self) -> Any:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.float16, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @staticmethod
    def get_checkpoint_weight_mapper() -> WeightsMapper:
        return WeightsMapper(orig_to_new_suffix={".up.bias": ".bias"})

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        if not isinstance(layer, LinearBase):
            if prefix in self.layers:
                raise ValueError(
                    f"The table '{prefix}' is held as two factors, which this plug-in cannot serve. Train with "
                    "`embeddings=False`, or serve `model.dequantize()`, saved by `save_pretrained`."
                )
            return None
        parent, _, last = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(last, [last])  # the layers that vLLM has made one of
        ranks = [self.layers.get(f"{parent}.{part}".lstrip(".")) for part in parts]
        return FactoredMethod(ranks) if any(ranks) else UnquantizedLinearMethod()


class FactoredMethod(LinearMethodBase):
    """Two products a layer. Of a fused one the parts share the first product, each has a second of its own rank.

    Args:
        ranks: of the parts; None is one that is held dense.
    """

    def __init__(self, ranks: list[int | None]) -> None:
        self.ranks = ranks

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        if input_size_per_partition != input_size or sum(output_partition_sizes) != output_size:
            raise ValueError("Compressed layers are not split over processes. Set `tensor_parallel_size=1`.")
        shapes = list(zip(output_partition_sizes, self.ranks, strict=True))
        layer.down, layer.up = nn.Module(), nn.Module()
        down = [(rank or 0, input_size) for _, rank in shapes]
        up = [(out, rank or 0) for out, rank in shapes]
        dense = [(0 if rank else out, input_size) for out, rank in shapes]
        layer.parts = {"down": down, "up": up, "dense": dense}
        layer.down.register_parameter("weight", _parameter(down, params_dtype))
        layer.up.register_parameter("weight", _parameter(up, params_dtype))
        layer.register_parameter("weight", _parameter(dense, params_dtype))

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        down = layer.down.weight.view(-1, x.shape[-1])
        inner = F.linear(x, down).split([rank or 0 for rank in self.ranks], dim=-1)
        ups = _matrices(layer.up.weight, layer.parts["up"])
        dense = _matrices(layer.weight, layer.parts["dense"])
        parts = [
            F.linear(h, up) if rank else F.linear(x, weight)
            for h, up, weight, rank in zip(inner, ups, dense, self.ranks, strict=True)
        ]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y if bias is None else y + bias


def _parameter(shapes: list[tuple[int, int]], dtype: torch.dtype) -> nn.Parameter:
    """Room for several matrices, one after another, and the function that vLLM calls to fill it."""
    room = nn.Parameter(torch.empty(sum(a * b for a, b in shapes), dtype=dtype), requires_grad=False)

    def weight_loader(parameter: nn.Parameter, loaded: torch.Tensor, shard: Any = None) -> None:
        place = _matrices(parameter.data, shapes)[_SHARDS.get(shard, shard)]
        if place.shape != loaded.shape:
            raise ValueError(
                f"A factor of shape {tuple(loaded.shape)} does not fit {tuple(place.shape)}, which config.json makes "
                "it. The two files are of different saves; save or download both again."
            )
        place.copy_(loaded)

    room.weight_loader = weight_loader  # type: ignore[attr-defined]
    return room


def _matrices(flat: torch.Tensor, shapes: list[tuple[int, int]]) -> list[torch.Tensor]:
    pieces = flat.split([a * b for a, b in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
