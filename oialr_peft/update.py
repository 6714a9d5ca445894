"""One update of the bases, top to bottom (paper, algorithm 2).

due         which layers take part, and which matrix of each is decomposed
decompose   an SVD of each, on the process that owns it
choose      how many singular values stay; a joint policy sees the spectra of all layers first
send        two small matrices and the singular values of each layer, to all processes
apply       the bases turn and are cut, sigma becomes diagonal; or one of them begins to train with sigma
moments     the optimizer's state turns with them
report      plain numbers

Decompose, choose, send, apply and moments go round by round, so that little is held at a time and the results of one
round travel while the next is computed; `workers.Exchange` does that. One process runs the same code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch

from .config import OIALRConfig
from .errors import tell
from .joint_ranks import JointRanks
from .linalg import Rotation, Seen, cut_by_activations, decompose
from .memory import release_memory
from .moments import MomentCarrier
from .policy import Bases, Policies
from .tuner.rules import initial_rank
from .update_report import UpdateReport, sampled
from .weights import DENSE, FACTORED, AdaptedWeight, Form
from .workers.exchange import Exchange, Solution
from .workers.group import Workers
from .workers.plan import SvdTask
from .workers.sharding import is_sharded


def update_bases(
    weights: Mapping[str, AdaptedWeight],
    config: OIALRConfig,
    policies: Policies,
    carrier: MomentCarrier,
    workers: Workers,
    *,
    step: int,
    update_number: int,
    seen: Mapping[str, Seen] = MappingProxyType({}),
    comparable: bool = True,
    waiting: Mapping[str, float | None] = MappingProxyType({}),
) -> UpdateReport:
    """Rotate the bases of the layers that are due, cut them, and move the optimizer's moments along.

    Layers that are still dense are factorised first, but for those that are `waiting` for their bases to settle, with
    their last stabilities, which count in a joint choice of ranks all the same. `weights` are by the names of their
    layers, in model order. A few at a time are worked on, so that the peak never holds two copies of them. A layer
    whose SVD cannot be had is left as it is, with one warning. What is `seen` of a layer decides what stays of it,
    and where it is `comparable` between layers how much.

    Raises:
        RuntimeError: on all processes, when one of them failed; it names the layer.
    """
    began = time.perf_counter()
    update = _Update(weights, config, policies, carrier, seen, step, waiting)
    due = update.due(update_number)
    tasks = [task for task in due if task.name not in waiting]
    joint = JointRanks(weights, update.facts, policies, carrier, seen if comparable else {}, step)
    if joint.wanted and tasks:
        spectra = Exchange(workers, update.matrix, joint.find, joint.take, update.sharded)
        spectra.run([task for task in due if task.cut])
        update.ranks = workers.decide(joint.choose, "its choice of ranks")
    Exchange(workers, update.matrix, update.decompose, update.apply, update.sharded).run(tasks)
    if not workers.alike:
        Exchange(workers, update.held, update.send_held, update.take_held).run(tasks)
    _warn_skipped(update.skipped, step)
    release_memory()
    return update.report(update_number, time.perf_counter() - began)


def _held(weight: AdaptedWeight, bases: Bases, step: int) -> Form:
    """Which bases a weight holds from this step on: none is given up that was held already, by an earlier run."""
    wanted = Form(*bases.held(weight.matrix_shape, step))
    return Form(wanted.left or weight.form.left, wanted.right or weight.form.right)


class _Update:
    """The phases of one update, and what they leave to the next ones."""

    def __init__(
        self,
        weights: Mapping[str, AdaptedWeight],
        config: OIALRConfig,
        policies: Policies,
        carrier: MomentCarrier,
        seen: Mapping[str, Seen],
        step: int,
        waiting: Mapping[str, float | None],
    ) -> None:
        self.weights, self.seen = weights, seen
        self.config, self.policies, self.carrier = config, policies, carrier
        self.step, self.waiting = step, dict(waiting)
        self.bases = {
            name: DENSE if name in waiting else _held(weight, policies.bases, step) for name, weight in weights.items()
        }
        self.sharded = any(is_sharded(weight.core) for weight in weights.values())
        self.facts = {name: weight.facts for name, weight in weights.items()}
        self.ranks: dict[str, int] | None = None  # of a joint choice
        self.factorised = False
        self.changed: dict[str, list[int]] = {}
        self.dropped: dict[str, float] = {}
        self.kept: dict[str, list[float]] = {}
        self.skipped: list[str] = []

    def due(self, update_number: int) -> list[SvdTask]:
        """A task for every layer that is due, and for those that are to hold other bases than they do."""
        names = list(self.weights)
        due = {*names[-self.policies.schedule.layers_due(update_number, len(names)) :]}
        changing = {name for name, weight in self.weights.items() if weight.form != self.bases[name]}
        return [self._task(name, name in due) for name in names if name in due or name in changing]

    def _task(self, name: str, cut: bool) -> SvdTask:
        weight, dense = self.weights[name], not self.weights[name].is_factored
        rank = initial_rank(name, weight.full_rank, self.config) if dense else weight.rank
        shape = weight.matrix_shape if dense else weight.core_shape
        method = self.config.init if dense else "svd"
        return SvdTask(name, shape, rank, weight.core.dtype, weight.core.device, method, cut, dense)

    def matrix(self, task: SvdTask) -> torch.Tensor:
        """What is decomposed: sigma, or the dense weight; a collective call where FSDP2 holds it in shards."""
        return self.weights[task.name].matrix

    def decompose(self, task: SvdTask, matrix: torch.Tensor) -> Solution | None:
        """Decompose, and choose where the ranks are not known yet; what is found is cut already."""
        rank = task.rank if self.ranks is None else self.ranks.get(task.name, task.rank)
        found = self._leading(task, matrix, rank)
        if found is None:
            return None
        rotation, dropped = found
        if task.cut and self.ranks is None:
            spectra, whole = {task.name: rotation.singular_values}, rotation
            rotation = rotation.cut(self.policies.ranks.choose(spectra, self.facts, self.step)[task.name])
            dropped += (1 - dropped) * rotation.dropped_energy(whole.singular_values)
        right = rotation.right.mT if task.travels_as_factors else rotation.right
        return Solution([rotation.left, rotation.singular_values, right], dropped)

    def _leading(self, task: SvdTask, matrix: torch.Tensor, rank: int) -> tuple[Rotation, float] | None:
        """The decomposition at a rank that is given, and the share of the energy that goes: of the layer's outputs
        where they were seen, else of the matrix."""
        if rank < min(matrix.shape[-2:]) and (seen := self.seen.get(task.name)) is not None:
            if (found := cut_by_activations(matrix, rank, seen)) is not None:
                return found
        whole = decompose(matrix, task.rank, task.method)
        if whole is None:
            return None
        rotation = whole.cut(rank)
        return rotation, rotation.dropped_energy(matrix)

    def apply(self, task: SvdTask, solution: Solution | None) -> None:
        """Apply, and moments: the only place where an update changes the model and the optimizer."""
        if solution is None:
            self.skipped.append(task.name)
            return
        weight, before = self.weights[task.name], self.weights[task.name].rank
        left, values, right = solution.tensors
        rotation = Rotation(left, values, right.mT if task.travels_as_factors else right)
        self.kept[task.name] = sampled(values)
        form, change = weight.form, rotation.change(weight.full_factors, self.bases[task.name])
        weight.apply(change)
        self.carrier.transport(weight.core, change.transport, was_dense=task.dense)
        if task.dense and weight.form == FACTORED and not self.sharded and weight.core.dtype == left.dtype:
            u, _, vh = cast(Any, weight.factors)  # the same values, which need not be held twice until they are sent
            solution.tensors = [u, values, vh if task.travels_as_factors else right]
        self.factorised |= weight.form != form
        if rotation.rank < before:
            self.changed[task.name] = [before, rotation.rank]
            self.dropped[task.name] = solution.words

    def held(self, task: SvdTask) -> list[torch.Tensor]:
        """What a process holds of a layer, moments included; not shards, of which no other process has a copy."""
        weight = self.weights[task.name]
        left, _, right = weight.factors
        held: list[Any] = [weight.core.detach(), left, right] if weight.is_factored else []
        held += [value for _, value in sorted((self.carrier.optimizer.state.get(weight.core) or {}).items())]
        return [value for value in held if isinstance(value, torch.Tensor) and value.ndim and not is_sharded(value)]

    def send_held(self, task: SvdTask, held: list[torch.Tensor]) -> Solution:
        """Where processors differ, after each update: products differ in their last bits, the owner's count."""
        return Solution(held)

    def take_held(self, task: SvdTask, solution: Solution | None) -> None:
        for mine, owners in zip(self.held(task), solution.tensors if solution else (), strict=True):
            mine.copy_(owners)

    def report(self, update_number: int, seconds: float) -> UpdateReport:
        """What the update did, and how large the layers are after it."""
        weights = self.weights
        return UpdateReport(
            step=self.step,
            update_number=update_number,
            factorised=self.factorised,
            seconds=seconds,
            ranks={name: weight.rank for name, weight in weights.items()},
            full_ranks={name: weight.full_rank for name, weight in weights.items()},
            changed={name: self.changed[name] for name in weights if name in self.changed},
            dropped={name: self.dropped[name] for name in weights if name in self.dropped},
            spectra={name: self.kept[name] for name in weights if name in self.kept},
            skipped=[name for name in weights if name in self.skipped],
            waiting=self.waiting,
            trainable_parameters=sum(weight.trainable_size for weight in weights.values()),
            stored_parameters=sum(weight.stored_size for weight in weights.values()),
            dense_parameters=sum(math.prod(weight.matrix_shape) for weight in weights.values()),
        )


def _warn_skipped(skipped: list[str], step: int) -> None:
    if skipped:
        tell(
            f"OIALR update at step {step}: no SVD for {', '.join(skipped[:5])}{', ...' if len(skipped) > 5 else ''} "
            "(non-finite values, or no driver converged). These layers stay as they are until the next update; look "
            "at the loss and the gradients if this repeats."
        )
