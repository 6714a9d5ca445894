"""OIALRConfig: every choice of the method, checked once, when made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from peft import PeftConfig
from peft.utils.peft_types import PeftType

from .policy import RankRule, Schedule


Rank = int | float | None
Names = list[str] | set[str] | str | None


FORMAT_VERSION = 1  # of saved adapters: names and shapes of tensors, and the fields that loading needs


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class OIALRConfig(PeftConfig):
    """Configuration of OIALR, Orthogonality-Informed Adaptive Low-Rank training (arXiv 2401.08505).

    Each targeted weight W (out, in) is held as u @ sigma @ vh; u and vh are frozen, sigma trains, and every
    `update_interval` optimizer steps the bases are rotated by an SVD of sigma and small singular values are dropped.
    Steps are optimizer steps, not micro-batches. The updates are made by `OIALRCallback` (Trainer) or `OIALRUpdater`
    (any other loop); without one of them the ranks never change, and a warning says so.

    Args:
        target_modules: names, suffixes or a regex of the layers to factorise, as in PEFT. `None` (default): every
            supported layer except output heads, tied, embedding and skinny ones.
        exclude_modules: names, suffixes or a regex of layers to leave alone, as in PEFT.
        modules_to_save: modules trained in full and saved with the adapter, as in PEFT.
        layers_to_transform, layers_pattern: restrict `target_modules` to some layer indices, as in PEFT.
        rank_pattern: {name or regex: rank}, overrides `r` for the layers it matches, as in PEFT.
        init_weights: `True` (default) factorises the layer's weight. `False` adds noise to sigma, for tests only.
        r: inner rank at factorisation: `None` (default) = min(out, in), an int, or a share in (0, 1] of min(out, in).
            Lower it to start small; cuts go on from there.
        delay: optimizer steps at full rank before factorisation (d). 0 (default) factorises at injection, for
            fine-tuning. From scratch, train until the bases have settled: a fifth to a half of the run.
        update_interval: optimizer steps between updates (ν), default 400. Lower it for short runs.
        sigma_cutoff: drop singular values below this share of the largest (β), in [0, 1), default 0.1. Raise it to end
            smaller; 0 never cuts.
        layer_step: share of layers that joins at each update, last layers first (α), in (0, 1], default 0.1.
        max_cut: at most this share of a layer's rank goes per update, in [0, 1], default 0.5.
        min_rank: floor of the rank as a share of min(out, in), in [0, 1], never under 1. Default 0.01.
        rank_multiple: cuts round ranks up to a multiple of this number. Default 1. Raise it (8, 16) where
            torch.compile wants few different shapes, or the hardware even ones.
        keep_first_layer, keep_last_layer: leave the first / last targeted layer dense. Default `False`.
        train_rest: paper mode: everything that is not factorised trains too and is saved with the adapter. Default
            `False`, as for any adapter. Set it when training from scratch.
        keep_base_weights: keep the dense base weight beside the factors. `None` (default): keep it when fine-tuning
            (so that `disable_adapter()`, `unload()` and several adapters work), free it when `delay > 0` or
            `train_rest`.
        moments: what happens to optimizer moments at an update: `"rotate"` (default) carries them into the new basis,
            `"slice"` cuts them without rotation as the authors' code does, `"reset"` starts them afresh.
        init: `"svd"` (default), or `"lowrank"` for a seeded randomised SVD where `r` is far below min(out, in).

    Raises:
        ValueError, TypeError: at construction, naming the field, its rule and the value received.
    """

    target_modules: Names = field(default=None, metadata=_help("Layers to factorise, as in PEFT."))
    exclude_modules: Names = field(default=None, metadata=_help("Layers to leave alone."))
    modules_to_save: list[str] | None = field(default=None, metadata=_help("Modules trained in full and saved."))
    layers_to_transform: list[int] | int | None = field(default=None, metadata=_help("Layer indices to factorise."))
    layers_pattern: list[str] | str | None = field(default=None, metadata=_help("Name of the list of layers."))
    rank_pattern: dict[str, Rank] = field(default_factory=dict, metadata=_help("Name or regex to rank."))
    init_weights: bool = field(default=True, metadata=_help("False adds noise to sigma; for tests."))
    r: Rank = field(default=None, metadata=_help("Rank at factorisation: None, an int, or a share in (0, 1]."))
    delay: int = field(default=0, metadata=_help("Optimizer steps at full rank before factorisation."))
    update_interval: int = field(default=400, metadata=_help("Optimizer steps between updates."))
    sigma_cutoff: float = field(default=0.1, metadata=_help("Drop singular values below this share of the largest."))
    layer_step: float = field(default=0.1, metadata=_help("Share of layers that joins per update, last first."))
    max_cut: float = field(default=0.5, metadata=_help("Largest share of a rank that goes per update."))
    min_rank: float = field(default=0.01, metadata=_help("Floor of the rank as a share of min(out, in)."))
    rank_multiple: int = field(default=1, metadata=_help("Cuts round ranks up to a multiple of this."))
    keep_first_layer: bool = field(default=False, metadata=_help("Leave the first targeted layer dense."))
    keep_last_layer: bool = field(default=False, metadata=_help("Leave the last targeted layer dense."))
    train_rest: bool = field(default=False, metadata=_help("Train and save everything that is not factorised too."))
    keep_base_weights: bool | None = field(default=None, metadata=_help("Keep the dense base weight."))
    moments: Literal["rotate", "slice", "reset"] = field(
        default="rotate", metadata=_help("Optimizer moments at an update: rotate, slice or reset.")
    )
    init: Literal["svd", "lowrank"] = field(default="svd", metadata=_help("svd, or lowrank: randomised and seeded."))
    ranks: dict[str, int | None] | None = field(
        default=None, metadata=_help("Written when saving: rank by module, null where still dense. Not for users.")
    )
    format_version: int = field(default=FORMAT_VERSION, metadata=_help("Of saved adapters. Not for users."))

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType("OIALR")  # entered by registry.py when the package is imported
        # JSON has no sets, and PEFT compares names by membership.
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, (list, tuple)) else value)
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This adapter has format version {self.format_version}; this oialr_peft reads versions up to "
                f"{FORMAT_VERSION}. Upgrade it: `pip install -U oialr-peft`."
            )
        self._check_ranks()
        self._check_counts()
        self._check_choices()

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.delay, self.update_interval, self.layer_step)

    @property
    def rank_rule(self) -> RankRule:
        return RankRule(self.sigma_cutoff, self.max_cut, self.min_rank, self.rank_multiple)

    @property
    def frees_base(self) -> bool:
        """Whether the dense base weight is freed once its layer is handed over to the adapter."""
        if self.keep_base_weights is None:
            return self.delay > 0 or self.train_rest
        return not self.keep_base_weights

    def _check_ranks(self) -> None:
        for name, rank in {"r": self.r, **{f"rank_pattern[{k!r}]": v for k, v in self.rank_pattern.items()}}.items():
            if rank is None:
                continue
            if isinstance(rank, bool) or not isinstance(rank, (int, float)):
                raise TypeError(f"`{name}` must be None, an int, or a float share of min(out, in); got {rank!r}.")
            if isinstance(rank, float) and not 0 < rank <= 1:
                raise ValueError(f"`{name}` given as a float is a share and must be in (0, 1]; got {rank}.")
            if isinstance(rank, int) and rank < 1:
                raise ValueError(f"`{name}` must be at least 1; got {rank}. Use None for the full rank.")

    def _check_counts(self) -> None:
        for name, least, unit in (
            ("delay", 0, "optimizer steps"),
            ("update_interval", 1, "optimizer steps"),
            ("rank_multiple", 1, "singular values"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"`{name}` counts {unit} and must be an int; got {value!r}.")
            if value < least:
                raise ValueError(f"`{name}` must be at least {least} {unit}; got {value}.")

    def _check_choices(self) -> None:
        ranges = {  # field: (interval as shown, test)
            "sigma_cutoff": ("[0, 1)", lambda v: 0 <= v < 1),
            "layer_step": ("(0, 1]", lambda v: 0 < v <= 1),
            "max_cut": ("[0, 1]", lambda v: 0 <= v <= 1),
            "min_rank": ("[0, 1]", lambda v: 0 <= v <= 1),
        }
        for name, (interval, inside) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"`{name}` must be a number in {interval}; got {value!r}.")
            if not (math.isfinite(value) and inside(value)):
                raise ValueError(f"`{name}` must be in {interval}; got {value}.")
        for name, allowed in {"moments": ("rotate", "slice", "reset"), "init": ("svd", "lowrank")}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")
        for name in ("init_weights", "keep_first_layer", "keep_last_layer", "train_rest"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"`{name}` must be True or False; got {getattr(self, name)!r}.")
        if self.keep_base_weights not in (None, True, False):
            raise TypeError(f"`keep_base_weights` must be None, True or False; got {self.keep_base_weights!r}.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` has no effect without `layers_to_transform`; set both or neither.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` has no effect when `target_modules` is a regex; put it in the regex."
            )
