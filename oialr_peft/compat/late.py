"""What is to be done to a module of another library once somebody imports it: our own import does not pay for it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def once_imported(name: str, then: Callable[[ModuleType], None]) -> None:
    """Call `then(module)` when the module is imported, or now if it was; once, however often it is asked for."""
    if name in sys.modules:
        then(sys.modules[name])
    elif not any(isinstance(finder, _Late) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Late(name, then))


class _Late(MetaPathFinder):
    """Finds one module as the others would, and has `then` follow its code."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name, self.then, self.asking = name, then, False

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name or self.asking:
            return None
        self.asking = True  # the others, through this one
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
                execute(module)
                self.then(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
