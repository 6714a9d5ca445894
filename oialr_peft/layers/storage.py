"""Storage of one layer: a dense weight before factorisation, three factors after, per adapter."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..compat.resize import resize_parameter
from ..linalg import Factors, Rotation, factor_shapes
from ..missed_update import UpdateWatch
from ..workers import full_tensor, is_sharded, set_block


class AdapterStorage(BaseTunerLayer, nn.Module):
    """What a wrapped layer holds per adapter, and how that changes.

    An adapter holds one trainable Parameter per layer: the dense weight (`oialr_weight`) in the full-rank phase, sigma
    (`oialr_sigma`) afterwards. It is the same Parameter object all along, resized in place, so optimizers, schedulers
    and wrappers that refer to it stay true through factorisation, cuts and loading. `oialr_u` and `oialr_vh` are
    buffers: they are saved, but nothing trains or tracks them.
    """

    adapter_layer_names: tuple[str, ...] = ("oialr_sigma", "oialr_weight")
    other_param_names: tuple[str, ...] = ("oialr_u", "oialr_vh")

    _unmerged_weight: torch.Tensor | None

    def __init__(self, base_layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.oialr_sigma = nn.ParameterDict()
        self.oialr_weight = nn.ParameterDict()
        self.oialr_u = BufferDict(persistent=True)
        self.oialr_vh = BufferDict(persistent=True)
        self.weight_shape: tuple[int, ...] = tuple(self.base_weight.shape)
        self.matrix_shape: tuple[int, ...] = self.matrix_shape_of(base_layer)
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._unmerged_weight = None
        self._unfilled: set[str] = set()
        self.sharded_ranks: dict[str, int] = {}  # by adapter; only where sigma is sharded and must keep its shape
        self.watches: dict[str, UpdateWatch | None] = {}  # by adapter; of the first layer of an adapter only

    @staticmethod
    def matrix_shape_of(layer: nn.Module) -> tuple[int, ...]:
        """The shape (rows, cols) of a layer's weight as a matrix; (groups, rows, cols) where it is several."""
        return tuple(cast(torch.Tensor, layer.weight).shape)

    # -- what is held ------------------------------------------------------------------------------------------

    def is_factored(self, adapter: str) -> bool:
        return adapter in self.oialr_sigma

    def holds(self, adapter: str) -> bool:
        return adapter in self.oialr_sigma or adapter in self.oialr_weight

    def parameter(self, adapter: str) -> nn.Parameter:
        """The one Parameter that trains: sigma, or the dense weight before factorisation."""
        return (self.oialr_sigma if self.is_factored(adapter) else self.oialr_weight)[adapter]

    def matrix(self, adapter: str) -> torch.Tensor:
        """What an update decomposes: sigma, or the dense weight as a matrix."""
        parameter = self.parameter(adapter).detach()
        if not self.is_factored(adapter):
            return parameter.reshape(self.matrix_shape)
        rank = self.rank(adapter)
        return full_tensor(parameter)[..., :rank, :rank]

    def factors(self, adapter: str) -> Factors:
        u, vh = cast(torch.Tensor, self.oialr_u[adapter]), cast(torch.Tensor, self.oialr_vh[adapter])
        sigma, rank = self.oialr_sigma[adapter], self.sharded_ranks.get(adapter)
        if rank is None:
            return Factors(u, sigma, vh)
        return Factors(u[..., :rank], sigma[..., :rank, :rank], vh[..., :rank, :])

    def rank(self, adapter: str) -> int:
        """The inner rank; `full_rank` before factorisation."""
        if not self.is_factored(adapter):
            return self.full_rank
        rank = self.sharded_ranks.get(adapter)
        return self.oialr_sigma[adapter].shape[-1] if rank is None else rank

    def trainable_size(self, adapter: str) -> int:
        """How many values train: those of sigma, or of the dense weight before factorisation."""
        count = math.prod(self.matrix_shape[:-2]) * self.rank(adapter) ** 2
        return count if self.is_factored(adapter) else math.prod(self.weight_shape)

    @property
    def full_rank(self) -> int:
        return min(self.matrix_shape[-2:])

    def adapter_weight(self, adapter: str) -> torch.Tensor:
        """The dense weight the adapter stands for, multiplied in float32 and cast once to the base weight's dtype."""
        dtype = self.base_weight.dtype
        if not self.is_factored(adapter):
            return self.oialr_weight[adapter].detach().to(dtype)
        u, _, vh = self.factors(adapter)
        sigma = self.matrix(adapter)
        sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
        return Factors(u, sigma, vh).compose().to(dtype).reshape(self.weight_shape)

    # -- life of an adapter ------------------------------------------------------------------------------------

    def add_dense(self, adapter: str, free_base: bool) -> None:
        """Start the full-rank phase: the adapter trains the base weight itself, or a copy where the base is kept."""
        weight = self.base_weight
        self.oialr_weight[adapter] = weight if free_base else nn.Parameter(weight.detach().clone())
        self._own_base(free_base)

    def add_factored(self, adapter: str, factors: Factors, free_base: bool, filled: bool = True) -> None:
        """Start as factors. `filled=False` marks them as placeholders that a file is about to fill."""
        self.oialr_sigma[adapter] = nn.Parameter(factors.sigma)
        self.oialr_u[adapter], self.oialr_vh[adapter] = factors.u, factors.vh
        if not filled:
            self._unfilled.add(adapter)
        self._own_base(free_base)

    def apply_rotation(self, adapter: str, rotation: Rotation) -> None:
        """Factorise the dense weight, or rotate the bases and cut them to the rotation's rank."""
        parameter = self.parameter(adapter)
        if is_sharded(parameter):
            self._apply_in_place(adapter, rotation)
            return
        if self.is_factored(adapter):
            new = rotation.apply(self.factors(adapter))
        else:
            new = rotation.factorise(parameter.dtype)
            del self.oialr_weight[adapter]
            self.oialr_sigma[adapter] = parameter
        self.oialr_u[adapter], self.oialr_vh[adapter] = new.u, new.vh
        resize_parameter(parameter, new.sigma)

    def _apply_in_place(self, adapter: str, rotation: Rotation) -> None:
        """As `apply_rotation` under FSDP: shapes stay, what is cut becomes zero, `sharded_ranks` notes it."""
        u, _, vh = self.factors(adapter)
        new = rotation.apply(Factors(u, self.matrix(adapter), vh))
        self.sharded_ranks[adapter] = rotation.rank
        for store, block in zip((self.oialr_u, self.oialr_sigma, self.oialr_vh), new, strict=True):
            set_block(cast(torch.Tensor, store[adapter]), block)

    def match_rank(self, adapter: str, rank: int | None) -> None:
        """Give the adapter the tensors of `rank` (`None` = dense), unfilled: a file is about to be loaded."""
        self._unfilled.discard(adapter)
        if not self.holds(adapter) or (rank == self.rank(adapter) if self.is_factored(adapter) else rank is None):
            return
        parameter = self.parameter(adapter)
        source = self.oialr_sigma if self.is_factored(adapter) else self.oialr_weight
        del source[adapter]
        if rank is None:
            self.oialr_weight[adapter] = parameter
            del self.oialr_u[adapter], self.oialr_vh[adapter]
            resize_parameter(parameter, parameter.new_zeros(self.weight_shape))
        else:
            u, sigma, vh = factor_shapes(self.matrix_shape, rank)
            self.oialr_sigma[adapter] = parameter
            self.oialr_u[adapter] = parameter.detach().new_zeros(u)
            self.oialr_vh[adapter] = parameter.detach().new_zeros(vh)
            resize_parameter(parameter, parameter.new_zeros(sigma))

    def delete_adapter(self, adapter_name: str) -> None:
        if self.holds(adapter_name):
            self.check_base(f"deleting the adapter {adapter_name!r}")
        self._unfilled.discard(adapter_name)
        self.sharded_ranks.pop(adapter_name, None)
        if watch := self.watches.pop(adapter_name, None):
            watch.end()
        super().delete_adapter(adapter_name)

    @property
    def base_weight(self) -> nn.Parameter:
        """The weight of the layer that is wrapped; empty once it was freed."""
        return cast(nn.Parameter, self.get_base_layer().weight)

    @property
    def base_is_freed(self) -> bool:
        weight = self._unmerged_weight if self.merged else self.base_weight
        return weight is not None and weight.numel() == 0

    def check_base(self, action: str) -> None:
        """Raise if the dense base weight, which `action` needs, was freed."""
        if self.base_is_freed:
            raise RuntimeError(
                f"The dense base weight of this {type(self.get_base_layer()).__name__} was freed, so {action} is "
                "impossible. Create the adapter with OIALRConfig(keep_base_weights=True) to keep it."
            )

    def _own_base(self, free: bool) -> None:
        if free:
            empty = self.base_weight.detach().new_empty(0)
            # Not by assignment: PEFT's low_cpu_mem_usage makes every assigned Parameter a meta tensor, and adapters
            # are moved to the device of the base weight.
            self.get_base_layer()._parameters["weight"] = nn.Parameter(empty, requires_grad=False)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Loading calls this once the tensors are filled. Their dtype stays: a detour over bf16 would round them."""
        self._convert(adapter_name, device=device or self.base_weight.device)

    def lower_dtype(self, adapter: str) -> None:
        """Hold the adapter in the dtype of the base weight, for `autocast_adapter_dtype=False`."""
        self._convert(adapter, device=self.base_weight.device, dtype=self.base_weight.dtype)

    def _convert(self, adapter: str, **to: Any) -> None:
        for store in (self.oialr_sigma, self.oialr_weight, self.oialr_u, self.oialr_vh):
            tensor = cast(torch.Tensor, store[adapter]) if adapter in store else None
            if tensor is not None and not tensor.is_meta:
                tensor.data = tensor.data.to(**to)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Take ranks from the shapes that come in, before the dicts below are filled from the same state dict."""
        for adapter in sorted({*self.oialr_sigma.keys(), *self.oialr_weight.keys()}):
            sigma = state_dict.get(f"{prefix}oialr_sigma.{adapter}")
            if is_sharded(self.parameter(adapter)):
                continue
            if sigma is not None:
                self.match_rank(adapter, sigma.shape[-1])
            elif f"{prefix}oialr_weight.{adapter}" in state_dict:
                self.match_rank(adapter, None)
        if self.base_is_freed and not self.merged:
            # Savers that drop tensors sharing memory (Accelerate's save_state) take all empty weights for one.
            state_dict.setdefault(f"{prefix}base_layer.weight", self.base_weight.detach())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
