"""What is used of transformers beyond its public surface. Seen in transformers 4.57 and 5."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers.trainer_callback import CallbackHandler


def config_name(config: Any) -> str | None:
    """Where a config was loaded from. Models tell it as `name_or_path`; bodies of other libraries' models do not."""
    return getattr(config, "_name_or_path", None)


def calling_handler() -> CallbackHandler | None:
    """The Trainer's CallbackHandler that is calling a callback.

    TensorBoard, W&B and others take logs from the handler's `on_log` event alone, and callbacks are given no reference
    to it or to the Trainer. It is the caller of every callback event, so the call stack names it. Can go once the
    Trainer passes itself or its handler to callbacks.
    """
    # On first use: `import oialr_peft` does not import the Trainer.
    from transformers.trainer_callback import CallbackHandler

    frame = sys._getframe()
    while frame is not None:
        if isinstance(handler := frame.f_locals.get("self"), CallbackHandler):
            return handler
        frame = frame.f_back
    return None
