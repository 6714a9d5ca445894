"""OIALR in PEFT: train at full rank, factorise, and let the rank fall. `import oialr_peft` registers the method."""

from typing import TYPE_CHECKING

from .registry import register


register()

from .config import OIALRConfig  # noqa: E402
from .errors import OIALRWarning  # noqa: E402
from .training.muon import MuonAdamW  # noqa: E402
from .training.updater import OIALRUpdater  # noqa: E402
from .tuner.model import OIALRModel  # noqa: E402
from .update_report import UpdateReport  # noqa: E402


if TYPE_CHECKING:
    from .export.save import save_compressed
    from .report.ranks import rank_report
    from .training.callback import OIALRCallback

__version__ = "0.1.0"
__all__ = [
    "MuonAdamW",
    "OIALRCallback",
    "OIALRConfig",
    "OIALRModel",
    "OIALRUpdater",
    "OIALRWarning",
    "UpdateReport",
    "rank_report",
    "save_compressed",
]

# Resolved on first use, so that importing the package does not import the Trainer or rich.
_LAZY = {"OIALRCallback": "training.callback", "rank_report": "report.ranks", "save_compressed": "export.save"}


def __getattr__(name: str):
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
