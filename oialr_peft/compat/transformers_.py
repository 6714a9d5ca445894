"""What is used of transformers beyond its public surface. Seen in transformers 4.57 and 5."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn


if TYPE_CHECKING:
    from transformers.trainer_callback import CallbackHandler


def config_name(config: Any) -> str | None:
    """Where a config was loaded from. Models tell it as `name_or_path`; bodies of other libraries' models do not."""
    return getattr(config, "_name_or_path", None)


def without_mark(weight: torch.Tensor) -> torch.Tensor:
    """A loaded weight without the mark that loading leaves: `low_cpu_mem_usage` of PEFT makes a Parameter like it, and
    hands on what it finds on it as arguments."""
    vars(weight).pop("_is_hf_initialized", None)
    return weight


def calling_handler() -> CallbackHandler | None:
    """The Trainer's CallbackHandler that is calling a callback.

    TensorBoard, W&B and others take logs from the handler's `on_log` event alone, and callbacks are given no reference
    to it or to the Trainer. It is the caller of every callback event, so the call stack names it. Can go once the
    Trainer passes itself or its handler to callbacks.
    """
    # On first use: `import oialr_peft` does not import the Trainer.
    from transformers.trainer_callback import CallbackHandler

    return next((h for f in _callers() if isinstance(h := f.f_locals.get("self"), CallbackHandler)), None)


def checkpoint_files(given: dict[str, Any]) -> list[str] | None:
    """The weights files that are about to be loaded, from what a quantizer is `given` before they are.

    transformers 5 passes them; in 4.57 they are a variable of `from_pretrained`, which called. Can go with 4.
    """
    name = "checkpoint_files"
    if name in given:
        return given[name]
    loading = (frame.f_locals.get(name) for frame in _callers() if frame.f_code.co_name == "from_pretrained")
    return next((files for files in loading if isinstance(files, list)), None)


def leave_weights_alone(model: nn.Module) -> None:
    """Have RWKV compute with its weights as they are: for inference it divides some of them in place, and multiplies
    again for training, to keep float16 in range; a weight that an adapter replaces is not there to be divided."""
    for module in model.modules():
        if hasattr(module, "_rescale_layers") and getattr(module.config, "rescale_every", 0):
            mode, module.training = module.training, True
            cast(Any, module)._rescale_layers()  # back to what was loaded, if they are divided now
            module.training = mode
            cast(Any, module).config.rescale_every = 0


def write_on_this_process(model: nn.Module) -> None:
    """Have `save_pretrained` write wherever it is called: since transformers 5.23 it does so on rank 0 alone, which
    need not be a process that trains this model, or that saves into this folder."""
    for module in model.modules():
        if hasattr(module, "should_save_on_this_rank"):
            cast(Any, module).should_save_on_this_rank = lambda is_main_process: is_main_process


def _callers() -> Iterator[FrameType]:
    """The functions that are being run, the innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def fused_names(experts: Any) -> tuple[str, str] | None:
    """The names of the two fused weights of a mixture's experts; None of a module that is no such thing.

    Told by what `use_experts_implementation` notes on a module (transformers 5). Experts that are spread over
    processes are left alone. Can go once transformers names a class for them.
    """
    marks = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "num_experts")
    if not all(hasattr(experts, mark) for mark in marks) or getattr(experts, "_is_expert_parallel", False):
        return None
    names = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
    return names if all(_is_fused(experts, name) for name in names) else None


def _is_fused(experts: Any, name: str) -> bool:
    weight: Any = getattr(experts, name, None)
    if type(weight) not in (torch.Tensor, nn.Parameter) or weight.element_size() < 2:  # quantised
        return False
    return weight.ndim == 3 and len(weight) == experts.num_experts and weight.is_floating_point()


def mark_whole(experts: Any) -> None:
    """Note on experts that were put together again what their class notes when it makes them."""
    experts._is_expert_parallel = False


def apply_gate(experts: Any, x: Any) -> Any:
    """The gate of the class that these experts were made of."""
    return experts.plain._apply_gate(experts, x)


def tie_weights(tuner: Any, _: Any) -> None:
    """After a state dict was loaded: PEFT's `low_cpu_mem_usage` replaces every Parameter by its own, tied ones too."""
    tuner.model.tie_weights()
