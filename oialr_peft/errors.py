"""The package's own warning category, and words that several errors say."""

import inspect
import warnings
from typing import Any


_BETWEEN = frozenset(  # packages that call us for the user
    "oialr_peft torch accelerate transformers peft safetensors diffusers trl sentence_transformers setfit lightning "
    "pytorch_lightning".split()
)


class OIALRWarning(UserWarning):
    """Something in an OIALR run needs the user's attention; the run goes on."""


NO_ADAPTER = (
    "Give the model that `get_peft_model` or `PeftModel.from_pretrained` made; one that is merged or compressed has "
    "no adapter any more."
)


def tell(message: str, *, once: bool = False) -> None:
    """Warn at the line of the user's own code that led here; every warning of the package is one of these.

    The line above is most often one of torch, PEFT or the Trainer, of which Accelerate ignores what seems to come from
    torch's schedulers.

    Args:
        once: for each line of the user's code, as Python does by itself; for what is said of every layer or model.
            Default `False`: each time anew, so that a second run with the same fault is told too.
    """
    frame: Any = inspect.currentframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {}) if once else {}
    place = frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
    warnings.warn_explicit(message, OIALRWarning, *place, registry=registry)
