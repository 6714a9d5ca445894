"""The weight that one adapter has on one layer, the object that the whole method is about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..compat.resize import resize_parameter
from ..linalg import HELD, BasisChange, Factors, full_precision, stored_size
from ..workers.sharding import full_tensor, is_sharded, set_block
from .form import SLOTS, VH, Form, U
from .incoming import OnLoad


if TYPE_CHECKING:
    from ..policy import LayerFacts


Stores = Mapping[str, Any]  # slot name: {adapter: tensor}


class AdaptedWeight:
    """The weight that one adapter has on one layer, W = left @ core @ right.

        form        left               core                  right
        dense       -                  oialr_weight, as W    -
        factored    oialr_u            oialr_sigma           oialr_vh
                    (rows, rank)       (rank, rank)          (rank, cols)
        one-sided   -                  oialr_sigma           oialr_vh
                                       (rows, rank)          (rank, cols)
                    or oialr_u (rows, rank) and oialr_sigma (rank, cols)

    With a `base` that stays, W = base + left @ core @ right (residual mode).

    The core trains. It is the same Parameter all along, resized in place, so optimizers, schedulers and wrappers that
    refer to it stay true through factorisation, cuts and loading. The bases are frozen between updates.

    Args:
        adapter: its name.
        stores: the dicts of the layer that hold the tensors, by the name of the slot. They belong to the layer, which
            PEFT saves, moves and casts; here is only what they mean.
        shape: of the weight as the layer stores it.
        matrix_shape: of the weight as a matrix (rows, cols), or several (groups, rows, cols).
        factors: its start; a core that is a Parameter is taken itself.
        base: gives the dense weight that W has beside the factors; None where they are all of it.
        awaits_file: they are placeholders that a file is about to fill.
        fingerprint: of the base weight and the bases that were made from it; None where that is not known.
    """

    def __init__(
        self,
        adapter: str,
        stores: Stores,
        shape: tuple[int, ...],
        matrix_shape: tuple[int, ...],
        factors: Factors,
        *,
        base: Callable[[], torch.Tensor] | None = None,
        awaits_file: bool = False,
        fingerprint: list[float] | None = None,
    ) -> None:
        self.adapter, self.shape, self.matrix_shape = adapter, shape, matrix_shape
        self.base, self.awaits_file, self.fingerprint = base, awaits_file, fingerprint
        self.sharded_rank: int | None = None  # only where the core is sharded and must keep its shape
        self.watch: Any = None  # of updates that are missing; for the first layer of an adapter only
        self.observer: Callable[..., Any] | None = None  # of what goes through the core in training
        core, self._stores = factors.core, stores
        self._hold(factors, core if isinstance(core, nn.Parameter) else nn.Parameter(core))

    # -- what is held ------------------------------------------------------------------------------------------

    @property
    def core(self) -> nn.Parameter:
        """The one Parameter that trains, as it is stored."""
        return self._stores[self.form.core.name][self.adapter]

    @property
    def is_factored(self) -> bool:
        """Whether it has any basis, so that its rank can fall."""
        return self.form.left or self.form.right

    @property
    def bases(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Left and right, as they are stored."""
        left = self._stores[U.name][self.adapter] if self.form.left else None
        return left, self._stores[VH.name][self.adapter] if self.form.right else None

    @property
    def factors(self) -> Factors:
        """Core and bases. Where FSDP holds them in the shapes of an earlier rank, the part that is in use."""
        (left, right), core, rank = self.bases, self.core, self.sharded_rank
        if rank is None:
            return Factors(left, core, right)
        return Factors(left[..., :rank], core[..., :rank, :rank], right[..., :rank, :])  # type: ignore[index]

    @property
    def full_factors(self) -> Factors:
        """`factors` without a gradient and with the whole core on every process; a collective call under FSDP."""
        left, _, right = self.factors
        core, rank = full_tensor(self.core.detach()), self.sharded_rank
        if not self.is_factored:
            return Factors(None, core.reshape(self.matrix_shape), None)
        return Factors(left, core if rank is None else core[..., :rank, :rank], right)

    @property
    def matrix(self) -> torch.Tensor:
        """What an update decomposes: the core, as a matrix where it is the dense weight."""
        return self.full_factors.core

    @property
    def rank(self) -> int:
        """The inner rank; `full_rank` before factorisation."""
        if not self.is_factored:
            return self.full_rank
        return min(self.core.shape[-2:]) if self.sharded_rank is None else self.sharded_rank

    @property
    def full_rank(self) -> int:
        return min(self.matrix_shape[-2:])

    @property
    def core_shape(self) -> tuple[int, ...]:
        """The shape of `matrix`, without gathering it."""
        if not self.is_factored:
            return self.matrix_shape
        return self.form.shapes(self.matrix_shape, self.rank)[self.form.core]

    @property
    def held_size(self) -> int:
        """How many values core and bases hold; from shapes, since a process may ask alone where they are sharded."""
        return sum(math.prod(shape) for shape in self.form.shapes(self.matrix_shape, self.rank).values())

    @property
    def held_bytes(self) -> int:
        """The bytes of `held_size`."""
        shapes = self.form.shapes(self.matrix_shape, self.rank)
        return sum(math.prod(s) * self._stores[slot.name][self.adapter].element_size() for slot, s in shapes.items())

    @property
    def trainable_size(self) -> int:
        """How many values train."""
        if self.sharded_rank is None:
            return self.core.numel()
        return math.prod(self.matrix_shape[:-2]) * self.sharded_rank**2

    @property
    def facts(self) -> LayerFacts:
        """What a rank policy knows of it beside its spectrum."""
        from ..policy import LayerFacts  # on first use, as for type checking above

        return LayerFacts(self.matrix_shape, self.rank, self.full_rank)

    @property
    def stored_size(self) -> int:
        """How many values a compressed checkpoint holds of it."""
        return stored_size(self.matrix_shape, self.rank) if self.base is None else math.prod(self.matrix_shape)

    @property
    def pair_is_smaller(self) -> bool:
        """Whether two factors, with the core folded into one, hold fewer values than the dense weight."""
        return self.is_factored and self.stored_size < math.prod(self.shape)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in the layer's shape, multiplied in float32 or better and cast once."""
        if self.base is None:
            return self._product().to(dtype).reshape(self.shape)
        product, base = self._product(), self.base().detach()
        return (base.to(torch.promote_types(base.dtype, product.dtype)) + product.reshape(self.shape)).to(dtype)

    def change(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the base, in the layer's shape."""
        return self._product().to(dtype).reshape(self.shape)

    def _product(self) -> torch.Tensor:
        left, core, right = self.full_factors
        if self.is_factored:
            core = core.to(torch.promote_types(core.dtype, torch.float32))
        with full_precision(core.device):
            return Factors(left, core, right).compose()

    def check_filled(self) -> None:
        """Raise if it still holds placeholders, and no file came; asked in every forward."""
        if not self.awaits_file:
            return
        if any(part is not None and bool(torch.isnan(part).any()) for part in self.factors):
            raise RuntimeError(
                f"The adapter {self.adapter!r} holds no weights yet: its config lists the ranks of a saved adapter, "
                "but no file was loaded. Load one with `PeftModel.from_pretrained`, or train a new adapter with a "
                "fresh OIALRConfig (`ranks=None`)."
            )
        self.awaits_file = False

    # -- how it changes ----------------------------------------------------------------------------------------

    def apply(self, change: BasisChange) -> None:
        """Take other bases and the core that belongs to them, and the form that they have."""
        if is_sharded(self.core):
            self._apply_in_blocks(change.factors)
        else:
            self._hold(change.factors, self.core)

    def match(self, rank: int | None, form: Form) -> None:
        """Have the tensors of `rank` (None with DENSE) in a form, without values: a file is about to be loaded."""
        self.awaits_file = False
        if form == self.form and (rank is None or rank == self.rank):
            return
        zeros, dtype = self.core.detach().new_zeros, self.core.dtype
        if rank is None:
            self._hold(Factors(None, zeros(self.shape), None), self.core)
        else:
            shapes, held = form.shapes(self.matrix_shape, rank), dtype if self.base is None else HELD
            tensors = {slot: zeros(shape, dtype=dtype if slot.trains else held) for slot, shape in shapes.items()}
            self._hold(Factors(tensors.get(U), tensors[form.core], tensors.get(VH)), self.core)

    def on_load(self, call: Callable[[AdaptedWeight], None]) -> None:
        """Call with this weight whenever a state dict was loaded into it."""
        self._stores[self.form.core.name].register_load_state_dict_post_hook(OnLoad(call, self))

    def to(self, **to: Any) -> None:
        """Convert every tensor as `torch.Tensor.to` does."""
        for slot in SLOTS:
            store = self._stores[slot.name]
            if self.adapter in store and not store[self.adapter].is_meta:
                store[self.adapter].data = store[self.adapter].data.to(**to)

    def _hold(self, factors: Factors, core: nn.Parameter) -> None:
        """Put the tensors into their slots; `core` is the Parameter that gets the values of `factors.core`."""
        self.form = Form.of(factors)
        tensors = {self.form.core: core, U: factors.left, VH: factors.right}
        for slot in SLOTS:
            store, tensor = self._stores[slot.name], tensors.get(slot)
            if tensor is None and self.adapter in store:
                del store[self.adapter]
            elif tensor is not None and not (slot.trains and self.adapter in store):
                store[self.adapter] = tensor
        if factors.core is not core:
            resize_parameter(core, factors.core if self.is_factored else factors.core.reshape(self.shape))

    def _apply_in_blocks(self, factors: Factors) -> None:
        """As `_hold` where FSDP holds the core: shapes stay, what is cut becomes zero, `sharded_rank` notes it."""
        self.sharded_rank = factors.core.shape[-1]
        for slot, block in zip((U, self.form.core, VH), factors, strict=True):
            set_block(self._stores[slot.name][self.adapter], cast(torch.Tensor, block))


Weights = Mapping[str, AdaptedWeight]  # of a model, by the names of their layers
