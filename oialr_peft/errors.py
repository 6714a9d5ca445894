"""The package's own warning category, and words that several errors say."""

import inspect
import warnings
from typing import Any


_BETWEEN = frozenset({"oialr_peft", "torch", "accelerate", "transformers"})  # packages that call us for the user


class OIALRWarning(UserWarning):
    """Something in an OIALR run needs the user's attention; the run goes on."""


NO_ADAPTER = (
    "Give the model that `get_peft_model` or `PeftModel.from_pretrained` made; one that is merged or compressed has "
    "no adapter any more."
)


def tell(message: str) -> None:
    """Warn at the line of the user's own code that led here, each time anew; for warnings out of a running training.

    The line above is most often one of torch or the Trainer. Accelerate ignores what seems to come from torch's
    schedulers, and Python tells a text once for each line, so a second run with the same fault would not be told.
    """
    frame: Any = inspect.currentframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    place = frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
    warnings.warn_explicit(message, OIALRWarning, *place, registry={})
