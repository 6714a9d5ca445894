"""Modules that compute with the weight of a layer instead of calling it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
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
    return any(child in _read_in(cls) for cls in type(parent).__mro__)


def reaches(module: nn.Module, name: str) -> bool:
    """Whether the code of `module` computes with the weight of a layer `name` that is not its own child, or hands the
    layer on, as heads do that take a table of words from the body: DeBERTa's and Perceiver's."""
    return any(_reached_in(cls, name) for cls in type(module).__mro__)


@cache
def _read_in(cls: type) -> frozenset[str]:
    return frozenset(name for nodes in _methods(cls, "weight") for name in _reads(nodes))


@cache
def _reached_in(cls: type, name: str) -> bool:
    return any(name in _reached(nodes) for nodes in _methods(cls, name))


def _methods(cls: type, word: str) -> Iterator[list[ast.AST]]:
    """The code of a class's own methods that name an attribute; but for those that make it."""
    if cls.__module__.startswith("torch.") or cls is object:
        return
    for name, member in vars(cls).items():
        method: Any = inspect.unwrap(cast(Any, member.fget if isinstance(member, property) else member))
        code = getattr(method, "__code__", None)
        if code and word in code.co_names and not any(part in name for part in ("init", "reset", "tie", "resize")):
            yield _nodes(method)


def _nodes(method: Any) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(method)))))
    except (OSError, SyntaxError):  # made at run time
        return []


def _reads(nodes: list[ast.AST]) -> set[str]:
    """The names of own layers whose weight is loaded, but for looks at its dtype and the like."""
    return {layer.attr for layer in _with_weight_loaded(nodes) if not isinstance(layer.value, ast.Attribute)}


def _reached(nodes: list[ast.AST]) -> set[str]:
    """The names of layers of layers whose weight is loaded, or which are arguments of a call."""
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    handed = [value for call in calls for value in (*call.args, *(keyword.value for keyword in call.keywords))]
    layers = [*_with_weight_loaded(nodes), *(value for value in handed if isinstance(value, ast.Attribute))]
    return {layer.attr for layer in layers if isinstance(layer.value, ast.Attribute)}


def _with_weight_loaded(nodes: list[ast.AST]) -> list[ast.Attribute]:
    """The `self.(...).layer` of all `self.(...).layer.weight` that the code computes with."""
    harmless: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in _ABOUT:
            harmless.add(id(node.value))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "hasattr", "getattr"):
            harmless.update(id(argument) for argument in node.args)
    return [
        node.value
        for node in nodes
        if isinstance(node, ast.Attribute)
        and (node.attr, isinstance(node.ctx, ast.Load), id(node) in harmless) == ("weight", True, False)
        and isinstance(node.value, ast.Attribute)
        and (isinstance(node.value.value, ast.Attribute) or getattr(node.value.value, "id", "") == "self")
    ]
