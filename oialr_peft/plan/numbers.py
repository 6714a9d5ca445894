"""What a run would cost on so many processes, computed from shapes alone. Nothing here is measured or sent."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
from torch import nn

from ..config import OIALRConfig
from ..layer import adapted_weights
from ..linalg import stored_size
from ..plain import model_size
from ..policy import Bases
from ..tuner.model import OIALRModel
from ..tuner.rules import initial_rank
from ..weights import Form
from .update import BYTES, Shape, UpdatePlan, plan_update


@dataclass(frozen=True)
class Architecture:
    """What a plan needs to know of a model: the matrix shape of every layer that is taken, how many parameters the
    dense model has and trains, how many of them are embeddings that stay, and what its file holds, buffers too."""

    name: str
    shapes: dict[str, Shape]
    parameters: int
    trainable: int
    embeddings: int
    stored: int

    @property
    def rest(self) -> int:
        """How many values are no targeted layer's; embeddings are among them."""
        return self.parameters - sum(map(math.prod, self.shapes.values()))


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one process holds under DDP and Adam, activations and the moment of an update apart.

    `buckets` are DDP's copies of the gradients; `gradient_as_bucket_view=True` saves them.
    """

    weights: int
    factors: int
    gradients: int
    buckets: int
    moments: int

    @property
    def total(self) -> int:
        return self.weights + self.factors + self.gradients + self.buckets + self.moments


@dataclass(frozen=True)
class Plan:
    """A run of the model on `processes`, each layer at the share `rank` of its full rank, in float32.

    `from_scratch`: as with OIALRConfig(delay=..., train_rest=True), else as with OIALRConfig(). `bases`: as the
    config's. `factorisation` is at full rank, before any cut; `update` has all layers due and cuts nothing.
    `compressed` are the parameters that `save_compressed` writes at that rank, of them `embeddings`. `step_bytes` are
    the gradients reduced per step, `dense_step_bytes` those of the dense model.
    """

    model: str
    processes: int
    rank: float
    update_interval: int
    from_scratch: bool
    bases: str
    svd_gflops: float
    layers: int
    parameters: int
    trainable: int
    factorisation: UpdatePlan
    update: UpdatePlan
    compressed: int
    embeddings: int
    step_bytes: int
    dense_step_bytes: int
    memory: MemoryPlan
    dense_memory: MemoryPlan

    @property
    def ring_factor(self) -> float:
        """What a process sends per byte of a ring all-reduce: 2 (N - 1) / N."""
        return 2 * (self.processes - 1) / self.processes

    def as_dict(self) -> dict:
        """Every field, ready for JSON."""
        totals = {"memory": self.memory.total, "dense_memory": self.dense_memory.total}
        fields = asdict(self)
        for name, total in totals.items():
            fields[name]["total"] = total
        return {**fields, "ring_factor": self.ring_factor}


def meta_model(source: str) -> nn.Module:
    """The model of a transformers config (Hub id, folder or config.json) on the meta device, without weights.

    The class is the one that the config names under `architectures`, else what AutoModel makes of it.

    Raises:
        ValueError: there is no such config, or transformers does not know its model.
    """
    if (adapter := Path(source) / "adapter_config.json").is_file() and not (adapter.parent / "config.json").is_file():
        found = json.loads(adapter.read_text(encoding="utf-8"))
        base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
        where = f"its base model: {base}" if base else "its base model, which it does not name"
        raise ValueError(f"'{source}' is an adapter, without the config of its model. Give {where}.")
    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No transformers config at {source!r}. Give a Hub id, a folder with a config.json, or that file; "
            f"transformers says: {error}"
        ) from error
    kinds = [getattr(transformers, name, None) for name in config.architectures or ()]
    with torch.device("meta"):
        return kinds[0](config) if kinds and kinds[0] else transformers.AutoModel.from_config(config)


def architecture(model: nn.Module, name: str, *, embeddings: bool = False) -> Architecture:
    """What a plan needs of `model`. Its layers are wrapped on the way: pass one from `meta_model`, not one in use.

    `embeddings`: as the config's. Tables that are taken by it are layers, and no longer among the embeddings.

    Raises:
        ValueError: no layer of the model can be factorised.
    """
    sizes = {trained: 0 for trained in (True, False)}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    # A delay, because meta weights cannot be factorised; which layers are chosen does not depend on it.
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    tuner = OIALRModel(model, OIALRConfig(delay=1, embeddings=embeddings), "default")
    weights = adapted_weights(tuner.model)
    shapes = {name: weight.matrix_shape for name, weight in weights.items()}
    kept = tables.keys() - {id(weight.core) for weight in weights.values()}
    total, left = sizes[True] + sizes[False], sum(tables[key] for key in kept)
    stored = model_size(tuner.model).dense.values
    return Architecture(name, shapes, total, sizes[True], left, stored)


def plan_run(
    dense: Architecture,
    processes: int,
    *,
    rank: float = 0.25,
    update_interval: int = 400,
    from_scratch: bool = False,
    bases: Literal["frozen", "longer"] = "frozen",
    svd_gflops: float,
) -> Plan:
    """Plan a run.

    Args:
        dense: the model, from `architecture`.
        processes: how many train together with DDP.
        rank: share in (0, 1] of min(out, in) that every layer has.
        bases: "frozen", or "longer" as `target_size` has it.
        svd_gflops: speed of one process at SVDs, in 1e9 of `SVD_FLOPS` x rows x cols x min per second.

    Raises:
        ValueError: a number is out of its range.
    """
    _check(processes=processes, rank=rank, update_interval=update_interval, svd_gflops=svd_gflops)
    config = OIALRConfig(r=float(rank))
    shapes, full = [*dense.shapes.values()], [min(shape[-2:]) for shape in dense.shapes.values()]
    ranks = [initial_rank(name, size, config) for name, size in zip(dense.shapes, full, strict=True)]
    sigmas, factors = _sigmas(shapes, ranks, Bases(bases))
    targeted = sum(map(math.prod, shapes)) if from_scratch else 0
    trainable = sum(map(math.prod, sigmas)) + (dense.trainable - targeted if from_scratch else 0)
    return Plan(
        model=dense.name,
        processes=processes,
        rank=rank,
        update_interval=update_interval,
        from_scratch=from_scratch,
        bases=bases,
        svd_gflops=svd_gflops,
        layers=len(shapes),
        parameters=dense.parameters,
        trainable=trainable,
        # Without a delay the layers are factorised at injection, by every process for itself.
        factorisation=plan_update(shapes, full, processes if from_scratch else 1, svd_gflops, dense=True),
        update=plan_update(sigmas, ranks, processes, svd_gflops),
        compressed=dense.rest + sum(stored_size(shape, r) for shape, r in zip(shapes, ranks, strict=True)),
        embeddings=dense.embeddings,
        step_bytes=BYTES * trainable if processes > 1 else 0,
        dense_step_bytes=BYTES * dense.trainable if processes > 1 else 0,
        memory=_memory(dense.parameters - targeted, factors, trainable, processes),
        dense_memory=_memory(dense.parameters, 0, dense.trainable, processes),
    )


def _sigmas(shapes: Sequence[Shape], ranks: Sequence[int], bases: Bases) -> tuple[list[Shape], int]:
    """The shape of what trains in every layer, and how many values all of them hold."""
    trained, held = [], 0
    for shape, rank in zip(shapes, ranks, strict=True):
        form = Form(*bases.held(shape, 0))
        tensors = form.shapes(shape, rank)
        trained.append(tensors[form.core])
        held += sum(map(math.prod, tensors.values()))
    return trained, held


def _memory(weights: int, factors: int, trainable: int, processes: int) -> MemoryPlan:
    buckets = trainable if processes > 1 else 0
    return MemoryPlan(*(BYTES * count for count in (weights, factors, trainable, buckets, 2 * trainable)))


def _check(*, processes: int, rank: float, update_interval: int, svd_gflops: float) -> None:
    for name, value in (("processes", processes), ("update_interval", update_interval)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")
    if not 0 < rank <= 1:
        raise ValueError(f"`rank` is a share of the full rank and must be in (0, 1]; got {rank}.")
    if not (svd_gflops > 0 and math.isfinite(svd_gflops)):
        raise ValueError(f"`svd_gflops` must be above 0 and finite; got {svd_gflops}.")
