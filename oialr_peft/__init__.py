"""OIALR in PEFT: train at full rank, factorise, and let the rank fall. `import oialr_peft` registers the method."""

from typing import TYPE_CHECKING

from .registry import register


register()

from .config import OIALRConfig  # noqa: E402
from .errors import OIALRWarning  # noqa: E402
from .tuner.model import OIALRModel  # noqa: E402


if TYPE_CHECKING:
    from .export.save import save_compressed
    from .report.ranks import rank_report
    from .training.callback import OIALRCallback
    from .training.muon import MuonAdamW
    from .training.search import oialr_search_space
    from .training.stability import StabilityCallback
    from .training.updater import OIALRUpdater
    from .tuner.together import factorise_together
    from .update_report import UpdateReport

__version__ = "0.1.0"
__all__ = [
    "MuonAdamW",
    "OIALRCallback",
    "OIALRConfig",
    "OIALRModel",
    "OIALRUpdater",
    "OIALRWarning",
    "StabilityCallback",
    "UpdateReport",
    "factorise_together",
    "oialr_search_space",
    "rank_report",
    "save_compressed",
]

# Resolved on first use: loading an adapter needs neither the Trainer nor rich nor what trains.
_LAZY = {
    "MuonAdamW": "training.muon",
    "OIALRCallback": "training.callback",
    "OIALRUpdater": "training.updater",
    "StabilityCallback": "training.stability",
    "UpdateReport": "update_report",
    "factorise_together": "tuner.together",
    "oialr_search_space": "training.search",
    "rank_report": "report.ranks",
    "save_compressed": "export.save",
}


def __getattr__(name: str):
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
