"""OIALRConfig: every choice of the method, checked once, when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from peft import PeftConfig
from peft.utils.peft_types import PeftType

from .config_checks import check


Rank = int | float | None
Names = list[str] | set[str] | str | None


FORMAT_VERSION = 2  # of saved adapters: names and shapes of tensors, and the fields that loading needs
WRITTEN = ("ranks", "one_sided", "format_version")  # fields that saving writes, not the user
RESIDUAL_RANK = 32  # where `r` is not given


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class OIALRConfig(PeftConfig):
    """Configuration of OIALR, Orthogonality-Informed Adaptive Low-Rank training (arXiv 2401.08505).

    Each targeted weight W (out, in) is held as u @ sigma @ vh. Sigma trains, u and vh are frozen, or the longer one
    trains along (`bases`). Every `update_interval` optimizer steps the bases are rotated by an SVD of sigma and small
    singular values are dropped. Steps are optimizer steps, not micro-batches. The updates are made by `OIALRCallback`
    (Trainer) or `OIALRUpdater` (any other loop); without one of them the ranks never change, and a warning says so.

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
        delay: optimizer steps at full rank before factorisation (d), or a share of the run in (0, 1). 0 (default)
            factorises at injection, for fine-tuning. From scratch, train until the bases have settled: 0.2 to 0.5.
            `"auto"` measures them: each layer is factorised at the first update at which its basis has settled,
            between a tenth and a half of the run. It costs an SVD of every dense weight each twentieth of the run.
        update_interval: optimizer steps between updates (ν), or a share of the run in (0, 1]. `None` (default) makes
            20 updates in the run after `delay`, so that every layer comes due, but at least one every 400 steps, which
            is also what it means where the length of the run is not known.
        bases: `"frozen"` trains sigma alone, as the paper does once the basis has settled. `"longer"` lets the longer
            side's basis train along with sigma, as one matrix: more trains, and the loss ends nearer to dense
            training's. `None` (default): longer with `target_size`, else frozen. Set it to longer when
            training from scratch, and to frozen under FSDP2 or where the values that train are to be few.
        freeze_bases: with `bases="longer"`, the step, or share of the run in (0, 1): from the first update at or
            after it both bases are frozen and sigma alone trains. `None` (default): never.
        residual: fine-tune as LoRA does: W stays whole, or quantised, and u @ sigma @ vh is what is added to it, zero
            at first. u and vh are the `r` leading singular directions of W and stay; sigma's r x r values train.
            Ranks and bases do not change, nothing gets smaller, and several adapters add up. `r=None` is 32 then, or
            the full rank where that is less. Default `False`. Set it for many small adapters on one base.
        save_bases: with `residual`, save u and vh too (default): the file is about half of a LoRA's of the same rank.
            `False` saves sigma alone; loading then decomposes the base's weights again, and refuses another base.
        lr_scale: scale of sigma's step, so that one learning rate serves every rank: `"match"` (default) gives it the
            size of a dense weight's, by the rule of the optimizer's kind; `"none"` leaves it as the optimizer does,
            as in the paper and in adapters saved before there was this field; a number is a constant scale of
            what is factorised.
        target_size: share in (0, 1) of the whole model's dense parameters, embeddings counted, that the compressed
            checkpoint is to hold at the end. The ranks of all layers are then chosen together, at every update for all
            layers; the last cut comes after a third of the run, with `delay` after two thirds. `None` (default): each
            layer by `sigma_cutoff`.
        rank_rule: below what singular values are dropped. `"relative"` (default, the paper's): the share
            `sigma_cutoff` of the layer's largest. `"energy"`: that share of their root mean square, for spectra with
            outliers. `"optimal"`: what looks like noise (Gavish and Donoho 2014), in one cut per layer.
        sigma_cutoff: drop singular values below this share (β) of what `rank_rule` says, in [0, 1), default 0.1. Raise
            it to end smaller; 0 never cuts.
        activation_aware: what stays of a layer that is taken to a given rank, by `r` after `delay` or `target_size`,
            which then chooses the ranks themselves in the same way:
            what matters most on the last step's batch, by the energy of activations times that of their gradients
            (default), or with `False` the largest singular values of the weight, the paper's way. Factorisation at
            injection (`delay=0`) has seen no data, and `sigma_cutoff` drops singular values: both are plain.
        layer_step: share of layers that joins at each update, last layers first (α), in (0, 1], default 0.1.
        max_cut: at most this share of a layer's rank goes per update, in [0, 1], default 0.5.
        min_rank: floor of the rank as a share of min(out, in), in [0, 1], never under 1. Default 0.01.
        rank_multiple: cuts round ranks up to a multiple of this number. Default 1. Raise it (8, 16) where
            torch.compile wants few different shapes, or the hardware even ones.
        keep_first_layer, keep_last_layer: leave the first / last targeted layer dense. Default `False`.
        embeddings: factorise nn.Embedding tables too, where `target_modules` is `None` and they are tied to nothing.
            Default `False`. Set it with `target_size` where much of a model is vocabulary.
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
    delay: int | float | Literal["auto"] = field(
        default=0, metadata=_help("Steps, or share of the run, at full rank; auto: by layer, once its basis settled.")
    )
    update_interval: int | float | None = field(
        default=None, metadata=_help("Steps, or share of the run, between updates; None: derived from its length.")
    )
    target_size: float | None = field(
        default=None, metadata=_help("Share of the dense parameters that the compressed model is to hold.")
    )
    rank_rule: Literal["relative", "energy", "optimal"] = field(
        default="relative",
        metadata=_help("What sigma_cutoff is a share of; optimal: by noise."),
    )
    sigma_cutoff: float = field(default=0.1, metadata=_help("Drop singular values below this share."))
    activation_aware: bool = field(default=True, metadata=_help("A given rank keeps what matters on data."))
    layer_step: float = field(default=0.1, metadata=_help("Share of layers that joins per update, last first."))
    max_cut: float = field(default=0.5, metadata=_help("Largest share of a rank that goes per update."))
    min_rank: float = field(default=0.01, metadata=_help("Floor of the rank as a share of min(out, in)."))
    rank_multiple: int = field(default=1, metadata=_help("Cuts round ranks up to a multiple of this."))
    keep_first_layer: bool = field(default=False, metadata=_help("Leave the first targeted layer dense."))
    keep_last_layer: bool = field(default=False, metadata=_help("Leave the last targeted layer dense."))
    embeddings: bool = field(default=False, metadata=_help("Factorise embedding tables too."))
    train_rest: bool = field(default=False, metadata=_help("Train and save everything that is not factorised too."))
    keep_base_weights: bool | None = field(default=None, metadata=_help("Keep the dense base weight."))
    bases: Literal["frozen", "longer"] = field(
        default=cast(Any, None),  # which __post_init__ replaces
        metadata=_help("frozen: sigma alone trains; longer: the longer side's basis too; None: longer with a size."),
    )
    freeze_bases: int | float | None = field(
        default=None, metadata=_help("Step, or share of the run, from which both bases are frozen.")
    )
    residual: bool = field(default=False, metadata=_help("Sigma is a change, added to a base that stays."))
    save_bases: bool = field(default=True, metadata=_help("With residual: save u and vh, or sigma alone."))
    lr_scale: str | float = field(default="match", metadata=_help("Scale of sigma's step: match, none, or a number."))
    moments: Literal["rotate", "slice", "reset"] = field(
        default="rotate", metadata=_help("Optimizer moments at an update: rotate, slice or reset.")
    )
    init: Literal["svd", "lowrank"] = field(default="svd", metadata=_help("svd, or lowrank: randomised and seeded."))
    ranks: dict[str, int | None] | None = field(
        default=None, metadata=_help("Written when saving: rank by module, null where still dense. Not for users.")
    )
    one_sided: dict[str, str] | None = field(
        default=None, metadata=_help("Written when saving: the side that trains, by module. Not for users.")
    )
    format_version: int = field(default=1, metadata=_help("Of saved adapters. Not for users."))

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
                f"{FORMAT_VERSION}. Upgrade it, as its README says."
            )
        self.rank_pattern = self.rank_pattern or {}  # PEFT takes None for it
        if self.bases is None:
            self.bases = "frozen" if self.target_size is None else "longer"
        check(self)
        if self.residual:
            self.format_version = FORMAT_VERSION  # for earlier versions these files would be whole weights

    @property
    def frees_base(self) -> bool:
        """Whether the dense base weight is freed once its layer is handed over to the adapter."""
        if self.keep_base_weights is None:
            return self.delay != 0 or self.train_rest
        return not self.keep_base_weights
