"""What is used of torch beyond its public surface. Seen in torch 2.13."""

from __future__ import annotations

import contextlib
import copy
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.modules.batchnorm import _NormBase as BatchNorm  # noqa: F401


def plain_autograd_only() -> bool:
    """Whether something takes no Function: torch.func, forward-mode derivatives, torch.jit.trace, torch.export.

    torch.func would take the newer form of a Function, but its signature is then inspected in every call, for as long
    as three small products last. Can go once torch tells publicly whether a transform or a dual level is active.
    """
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return True
    return is_tracing() or torch.compiler.is_exporting()


def convolve_with(conv: Any, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The convolution with another kernel. Can go once nn.Conv2d's forward takes one."""
    return conv._conv_forward(x, kernel, bias)


def padded(conv: Any, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """x and the padding that is left to do by zeros, after padding that F.conv2d does not know was done."""
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return x, conv.padding
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=mode), 0


class _Eagerly:
    """The process's stance on torch.compile, which the first that enters takes and the last that leaves gives back:
    they need not leave in the order in which they came."""

    def __init__(self) -> None:
        self._inside, self._stance = 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        if not self._inside:
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        self._inside += 1

    def __exit__(self, *_: Any) -> None:
        self._inside -= 1
        if not self._inside:
            self._stance.close()


_EAGERLY = _Eagerly()


def run_eagerly() -> contextlib.AbstractContextManager[Any]:
    """While it lasts what torch.compile made runs uncompiled; nothing where nobody compiles.

    A step that is looked into has no place in a compiled graph, and compiling it too would use up its recompilations.
    """
    if "torch._dynamo" not in sys.modules:  # importing it takes longer than such a step
        return contextlib.nullcontext()
    return _EAGERLY


def holds_back_gradients(module: Any) -> bool:
    """Whether a module of FSDP2 keeps gradients that are not reduced yet, its synchronisation being switched off; no
    parameter has them as `grad`. A module has one group of parameters in torch 2.11. Can go once FSDP2 tells it."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    for param in (param for group in groups if group is not None for param in group.fsdp_params):
        whole = getattr(param, "_unsharded_param", None)
        if param.unsharded_accumulated_grad is not None or getattr(whole, "grad", None) is not None:
            return True
    return False


def set_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """Set a parameter of a module past `register_parameter`.

    PEFT's low_cpu_mem_usage patches that method, and every Parameter assigned meanwhile becomes a meta tensor. Can go
    once PEFT's `init_empty_weights` spares parameters that are not the adapter's.
    """
    module._parameters[name] = parameter


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward. Can go once torch tells it publicly."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def is_offloaded(module: nn.Module) -> bool:
    """Whether Accelerate fetches the module's weights for each call. Can go once it tells that publicly."""
    return hasattr(module, "_hf_hook")


def is_packed(attention: nn.MultiheadAttention) -> bool:
    """Whether one Parameter holds the weights of queries, keys and values."""
    return attention._qkv_same_embed_dim


def plain_name(name: str) -> str:
    """The name of a module without what torch.compile puts into it."""
    return name.replace("_orig_mod.", "")


def foreach_scaled(tensors: list[torch.Tensor], factor: Any) -> list[torch.Tensor]:
    """Each of many tensors times a factor, as new tensors, in few kernels. Can go once torch names it publicly."""
    return list(torch._foreach_mul(tensors, factor))  # pyright: ignore[reportPrivateImportUsage]


def foreach_extrapolate(tensors: list[torch.Tensor], origins: list[torch.Tensor], factor: float) -> None:
    """Each of many tensors to its origin plus `factor` times the way from there, in place and in few kernels.

    As a lerp, so that tensors in bfloat16 are rounded once. Can go once torch names it publicly.
    """
    torch._foreach_lerp_(tensors, origins, 1 - factor)  # pyright: ignore[reportPrivateImportUsage]


def writes(tensor: torch.Tensor) -> int:
    """How often the tensor was written in place. Can go once torch counts that publicly."""
    return tensor._version


def lion_rate(optimizer: Any) -> float:
    """The first rate, by which lion_pytorch divides its decay; 1 of other optimizers."""
    return getattr(optimizer, "_init_lr", 1.0) if getattr(optimizer, "decoupled_wd", False) else 1.0


def with_child(module: Any, name: str, child: nn.Module) -> Any:
    """A shallow copy of a module with another child; the module itself is as it was. torch has no such thing."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, name: child}
    return copied
