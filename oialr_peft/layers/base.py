"""A layer whose weight an OIALR adapter replaces: its forward, and merging."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge

from ..linalg import Factors
from .storage import AdapterStorage


class OIALRLayer(AdapterStorage):
    """A layer whose weight an OIALR adapter replaces; subclasses say what it does with a weight and with factors."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the base layer, in the dtype of x; under autocast in autocast's dtype."""
        names = [name for name in self.active_adapters if self.holds(name)]
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.merged:
            return self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or not names:
            self.check_base("running the layer without an adapter")
            return self.base_layer(x, *args, **kwargs)
        adapter = self._only(names)
        parameter = self.parameter(adapter)
        if adapter in self._unfilled:
            self._check_filled(adapter)
        if torch.is_autocast_enabled(x.device.type) and parameter.dtype != torch.float64:
            if not self.is_factored(adapter):  # by autocast itself, which keeps one cast weight for several calls
                return self._dense(x, parameter, cast(torch.Tensor | None, self.get_base_layer().bias))
            return self._adapted(x, adapter, torch.get_autocast_dtype(x.device.type))
        return self._adapted(x, adapter, parameter.dtype).to(x.dtype)

    def _adapted(self, x: torch.Tensor, adapter: str, dtype: torch.dtype) -> torch.Tensor:
        """The forward in `dtype`, always cast: autocast does not reach into the backward of our own functions."""
        bias = cast(torch.Tensor | None, self.get_base_layer().bias)
        bias = None if bias is None else bias.to(dtype)
        if not self.is_factored(adapter):
            return self._dense(x.to(dtype), self.oialr_weight[adapter].to(dtype), bias)
        u, sigma, vh = self.factors(adapter)
        return self._factored(x.to(dtype), Factors(u, sigma.to(dtype), vh), bias)

    def _dense(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer with a dense `weight`."""
        raise NotImplementedError

    def _factored(self, x: torch.Tensor, factors: Factors, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer by its factors, in the cheapest order; sigma has the dtype of x, u and vh may have another."""
        raise NotImplementedError

    def enable_adapters(self, enabled: bool) -> None:
        if not enabled:
            self.check_base("disabling the adapter")
        super().enable_adapters(enabled)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the adapter's weight in the place of the base weight, which is kept aside for `unmerge`.

        Raises:
            ValueError: another adapter is merged, or `safe_merge` and the merged weight is not finite; the base weight
                is then unchanged.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if self.holds(name)]
        if not names:
            return
        adapter = self._only([*self.merged_adapters, *names])
        weight = self.adapter_weight(adapter)
        if safe_merge and not bool(torch.isfinite(weight).all()):
            raise ValueError(f"The merged weight of adapter {adapter!r} is not finite; the adapter seems broken.")
        self._unmerged_weight = self.base_weight.data
        self.base_weight.data = weight
        self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        if self._unmerged_weight is not None:
            self.base_weight.data = self._unmerged_weight
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def _only(self, names: list[str]) -> str:
        if len(names) > 1:
            raise ValueError(
                "An OIALR adapter replaces the weight of a layer, so one can be active or merged at a time; got "
                f"{names}. Choose one with `set_adapter`; `unmerge_adapter` takes back a merged one."
            )
        return names[0]

    def _check_filled(self, adapter: str) -> None:
        if any(bool(torch.isnan(part).any()) for part in self.factors(adapter)):
            raise RuntimeError(
                f"The adapter {adapter!r} holds no weights yet: its config lists the ranks of a saved adapter, but no "
                "file was loaded. Load one with `PeftModel.from_pretrained`, or train a new adapter with a fresh "
                "OIALRConfig (`ranks=None`)."
            )
        self._unfilled.discard(adapter)

    def __repr__(self) -> str:
        return "oialr." + super().__repr__()
