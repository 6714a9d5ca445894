"""Modules that hold several weights and read them directly, as layers that can be factored one by one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn


class TakenApart(nn.Module):
    """Stands in the place of such a module, with its weights as layers of their own, which are wrapped like any other.

    Attributes:
        parts: names of those layers.
        stays: whether a compressed model has it like this, so that its parts are layers like any other.
    """

    parts: ClassVar[tuple[str, ...]]
    stays = False

    @abstractmethod
    def join(self) -> nn.Module:
        """The module as it was, with the weights of the parts, which must be plain layers again."""

    @property
    def unload_and_optionally_merge_module(self) -> Callable[..., nn.Module]:
        """PEFT's hook for unloading a module that is not one layer; without it PEFT goes into the module."""
        if self.stays:
            raise AttributeError("unload_and_optionally_merge_module")
        return self._unload

    def _unload(self, merge: bool, safe_merge: bool, adapter_names: list[str] | None) -> nn.Module:
        for name in self.parts:
            child: Any = getattr(self, name)
            if merge:
                child.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            setattr(self, name, child.get_base_layer())
        return self.join()
