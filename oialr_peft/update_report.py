"""UpdateReport: what one update did, for logs, traces, cards and people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch

from .units import short


_POINTS = 17  # of a spectrum: enough to draw it, few enough for a line per update


@dataclass(frozen=True)
class UpdateReport:
    """What one update did, in plain numbers; `print` shows it as one line.

    `ranks` is the rank of every layer after the update, `full_ranks` its min(out, in); `changed` maps the layers whose
    rank fell to [before, after]; `dropped` is, per cut layer, the share of the energy (squared norm) that went with
    the cut: of its outputs as the loss feels them where `activation_aware` chose what stays, else of its weight.
    `spectra` is, per layer that was decomposed, its singular values after the update at evenly spaced places, the
    largest first and the smallest last. `waiting` maps the layers that stay dense until their bases have settled to
    their last stability, None where it is not known yet. `trainable_parameters` counts those of the OIALR layers,
    `stored_parameters` what `save_compressed` would keep of them, `dense_parameters` what they hold when dense.
    `compressed_bytes` is the whole model as `save_compressed` would write it now, `dense_bytes` its dense self.
    """

    step: int
    update_number: int
    factorised: bool
    seconds: float
    ranks: dict[str, int]
    full_ranks: dict[str, int] = field(default_factory=dict)
    changed: dict[str, list[int]] = field(default_factory=dict)
    dropped: dict[str, float] = field(default_factory=dict)
    spectra: dict[str, list[float]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    waiting: dict[str, float | None] = field(default_factory=dict)
    trainable_parameters: int = 0
    stored_parameters: int = 0
    dense_parameters: int = 0
    compressed_bytes: int = 0
    dense_bytes: int = 0

    def as_dict(self) -> dict:
        """Every field, ready for JSON."""
        return asdict(self)

    def as_logs(self) -> dict[str, float]:
        """The scalars that go to the Trainer's logs."""
        ranks = list(self.ranks.values())
        known = [stability for stability in self.waiting.values() if stability is not None]
        settling = {"oialr/waiting_layers": len(self.waiting)} if self.waiting else {}
        settling |= {"oialr/waiting_stability": sum(known) / len(known)} if known else {}
        return {
            **settling,
            "oialr/mean_rank": sum(ranks) / len(ranks),
            "oialr/min_rank": min(ranks),
            "oialr/max_rank": max(ranks),
            "oialr/layers_cut": len(self.changed),
            "oialr/max_dropped_energy": max(self.dropped.values(), default=0.0),
            **self._spectrum(),
            "oialr/trainable_parameters": self.trainable_parameters,
            "oialr/stored_parameters": self.stored_parameters,
            "oialr/compressed_bytes": self.compressed_bytes,
            "oialr/compressed_share": self.compressed_bytes / max(1, self.dense_bytes),
            "oialr/update_seconds": self.seconds,
        }

    def _spectrum(self) -> dict[str, float]:
        """The singular value in the middle and the last one, as shares of the largest, means of the layers."""
        places = {"median": lambda values: values[len(values) // 2], "last": lambda values: values[-1]}
        found = [values for values in self.spectra.values() if values[0]]
        return {
            f"oialr/spectrum_{name}": sum(place(values) / values[0] for values in found) / len(found)
            for name, place in places.items()
            if found
        }

    def __str__(self) -> str:
        logs = self.as_logs()
        words = [f"cut {len(self.changed)} of {len(self.ranks)} layers"]
        if self.factorised:
            words.insert(0, "factorised")
        if self.waiting:
            words.insert(0, f"{len(self.waiting)} layers wait for their bases to settle")
        if self.changed:
            words.append(f"at most {logs['oialr/max_dropped_energy']:.2%} of a layer's energy dropped")
        if self.skipped:
            words.append(f"{len(self.skipped)} left alone for want of an SVD")
        words.append(f"mean rank {logs['oialr/mean_rank']:.4g} of {_mean(self.full_ranks):.4g}")
        words.append(f"{self.trainable_parameters:,} parameters train in them")
        if self.dense_bytes:
            share = f"{logs['oialr/compressed_share']:.0%} of dense"
            words.append(f"the whole model compressed is {short(self.compressed_bytes)}, {share}")
        return f"OIALR update {self.update_number} at step {self.step}: {', '.join(words)} ({self.seconds:.2g} s)"


def sampled(values: torch.Tensor) -> list[float]:
    """Singular values (..., rank) at 17 evenly spaced places or fewer, to five digits; of several groups the mean."""
    mean = values.detach().float().reshape(-1, values.shape[-1]).mean(0).tolist()
    places = torch.linspace(0, len(mean) - 1, min(len(mean), _POINTS), dtype=torch.float64, device="cpu").round()
    return [float(f"{mean[int(place)]:.5g}") for place in places.tolist()]


def _mean(ranks: dict[str, int]) -> float:
    return sum(ranks.values()) / max(1, len(ranks))
