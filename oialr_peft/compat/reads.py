"""Modules that compute with the weight of a layer instead of calling it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any, cast

from torch import nn


_ABOUT = frozenset(
    "data device dtype element_size grad is_cuda is_meta ndim requires_grad shape size".split()
)  # of it, not its values


def reads_weight(parent: nn.Module, child: str) -> bool:
    """Whether the code of `parent` computes with `self.<child>.weight`, so that a wrapper of the child must have it.

    Found in the source of its class: WavLM hands the weights of its projections to a function of torch, Mamba to its
    kernels. Looks at its dtype, as T5's, do not count, nor does initialisation.
    """
    return child in _read_by(type(parent))


@cache
def _read_by(cls: type) -> frozenset[str]:
    """The names of the layers whose weights the methods of a class, its own or inherited, compute with."""
    if cls.__module__.startswith("torch.") or cls is object:
        return frozenset()
    found = {name for base in cls.__bases__ for name in _read_by(base)}
    for name, member in vars(cls).items():
        method: Any = inspect.unwrap(cast(Any, member.fget if isinstance(member, property) else member))
        code = getattr(method, "__code__", None)
        if code and "weight" in code.co_names and not any(part in name for part in ("init", "reset", "tie")):
            found |= _reads(method)
    return frozenset(found)


def _reads(method: Any) -> set[str]:
    try:
        nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(method)))))
    except (OSError, SyntaxError):  # made at run time
        return set()
    harmless: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in _ABOUT:
            harmless.add(id(node.value))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "hasattr", "getattr"):
            harmless.update(id(argument) for argument in node.args)
    return {
        node.value.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and (node.attr, isinstance(node.ctx, ast.Load), id(node) in harmless) == ("weight", True, False)
        and isinstance(node.value, ast.Attribute)
        and getattr(node.value.value, "id", "") == "self"
    }
