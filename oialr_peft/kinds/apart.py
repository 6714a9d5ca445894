"""Modules that hold several weights and read them directly, as layers that can be factored one by one."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn


class TakenApart(nn.Module):
    """Stands in the place of such a module, with its weights as layers of their own, which are wrapped like any other.

    Attributes:
        parts: names of those layers.
    """

    parts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def join(self) -> nn.Module:
        """The module as it was, with the weights of the parts, which must be plain layers again."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT's hook for unloading a module that is not one layer."""
        for name in self.parts:
            child: Any = getattr(self, name)
            if merge:
                child.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            setattr(self, name, child.get_base_layer())
        return self.join()
