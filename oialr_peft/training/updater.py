"""OIALRUpdater: when the updates happen. Used like a learning-rate scheduler, in any loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..compat.lightning_ import unwrapped
from ..errors import tell
from ..layer import adapted_weights, oialr_layers
from ..linalg import full_precision
from ..moments import MomentCarrier
from ..policy import whole_steps
from ..tuner.find import config_of, shared_fields
from ..update import update_bases
from ..update_report import UpdateReport
from ..workers.check import digests
from ..workers.parallel import Parallel
from ..workers.sharding import fsdp_modules, is_sharded
from . import ending, notices, target
from .averages import Averages
from .optimizer_checks import check_optimizer
from .optimizer_steps import GradientWatch, OptimizerSteps
from .restored import Restored
from .saved_state import checked_scales, checked_settling, checked_state
from .seen import SeenActivations
from .settling import Waiting
from .step_scale import StepScale


class OIALRUpdater:
    """Makes the basis updates of an OIALR model when they are due.

    ```python
    updater = OIALRUpdater(model, optimizer)
    for batch in loader:
        model(**batch).loss.backward()
        optimizer.step()
        updater.step()          # after every optimizer step
        optimizer.zero_grad()
    ```

    Steps are counted by a hook of the optimizer, so a call for each micro-batch, or one before `optimizer.step()`,
    counts right too, and gradients that wait for the next step move with the bases.

    Args:
        model: a PEFT model with an OIALR adapter, or a transformers model with one (`model.add_adapter`).
        optimizer: the optimizer that trains it, also as wrapped by Accelerate. Parameters keep their identity through
            every update, so parameter groups, schedulers and wrappers stay valid.
        total_steps: the optimizer steps of the whole run, where they are known; default `None`. With them a run that
            is too short for every layer to come due says so before step 1; `target_size` and shares need them.
        check: on several processes, compare ranks, factors and moments after every update and stop where they differ.
            Default `False`; it costs a hash of all factors. For hunting faults.

    Raises:
        TypeError, ValueError: the model has no active OIALR adapter, the optimizer does not hold its parameters or
            holds another optimizer, `total_steps` is no whole number.
        NotImplementedError: the model is sharded over processes in another way than by FSDP2, or by FSDP2 with
            `bases="longer"`.
        RuntimeError: on several processes, when they have different configs, layers or ranks, or one reports an error.
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, *, total_steps: int | None = None, check: bool = False
    ) -> None:
        model = unwrapped(model)
        self.total_steps, self.check = whole_steps(total_steps), check
        self.weights = adapted_weights(model)
        self.optimizer = optimizer
        self.steps, self._fresh = 0, True
        self._warned: set[str] = set()
        error: Exception | None = None
        try:
            self._take(model)
        except Exception as found:
            error = found
        self.parallel = Parallel(model, optimizer, self._parameters(), self._facts, error)
        self._waiting = Waiting(self.weights, self.policies.settling)
        self._step_scale = StepScale(self.carrier.optimizer, self.weights, self.policies.step_size)
        self._restored = Restored(self.carrier, self.weights, self._step_scale)
        self._seen = SeenActivations(self.weights, self.config, self.policies.ranks)
        self._look_ahead()
        below = {"below target": target.starts_below(self._size, self.config, self.weights)}
        self._warn(notices.beforehand(self.config, self.weights, self.policies, self.total_steps) | below)

    def _take(self, model: nn.Module) -> None:
        if not self.weights:
            raise TypeError(
                f"{type(model).__name__} has no active OIALR adapter. Make one with "
                "`get_peft_model(model, OIALRConfig())` before training, or leave the OIALR callback or updater away."
            )
        fsdp_modules(model)  # so that a weight's core is what the optimizer holds
        first = next(iter(self.weights.values()))
        self.config = config_of(model, first.adapter)
        self.carrier = MomentCarrier(self.optimizer, self.config.moments)
        self._watches = [weight.watch for weight in self.weights.values() if weight.watch]
        self.policies, self._size = target.policies_for(model, self.config, self.weights, self.total_steps)
        check_optimizer(self.carrier, self.weights, oialr_layers(model), self.config.bases)
        self._steps_taken = OptimizerSteps(self.carrier.optimizer, self._parameters().values())
        self._gradients = GradientWatch(self._parameters().values())
        self._averages = Averages(model, list(self.weights.values()), self._watches)
        for watch in self._watches:
            watch.attend()

    def _facts(self) -> dict[str, Any]:
        """What must be the same on all processes."""
        facts = shared_fields(getattr(self, "config", None))
        ranks = {name: weight.rank for name, weight in self.weights.items()}
        steps = {"the count of steps": self.steps, "`total_steps`": self.total_steps}
        return {**facts, "the layers and ranks": ranks, **steps}

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: weight.core for name, weight in self.weights.items()}

    def step(self) -> UpdateReport | None:
        """Count the optimizer steps since the last call; where an update came due with them, make it and report it."""
        taken = self._new_steps()
        if not taken:
            return None
        if self._steps_taken.any:
            for watch in self._watches:
                watch.reset(self, self._steps_taken.at)
        numbers = map(self.policies.schedule.update_number, range(self.steps + 1, self.steps + taken + 1))
        number = max((number for number in numbers if number is not None), default=None)
        self.steps += taken
        if number is None and self._is_late():
            number = self.policies.schedule.update_number(self.policies.schedule.last_by(self.steps))
        if number is not None:
            self._warn(notices.frozen(self.weights, self._steps_taken.trained))
            number = number if self._steps_taken.trained else None
        self._averages.warn_of_others(update=number is not None)
        self._warn({"past the end": notices.past_the_end(self.config, self.steps, self.total_steps)})
        report = None if number is None else self._update(number, taken)
        self._look_ahead()
        return report

    def _is_late(self) -> bool:
        """Whether all layers are dense after the step of their factorisation, as in a run that is resumed with another
        length; asked after the first step, since those that no SVD can be had of stay dense for longer."""
        fresh, self._fresh = self._fresh, False
        late = self.steps > self.policies.schedule.first and self.policies.settling is None
        return fresh and late and not any(weight.is_factored for weight in self.weights.values())

    def _look_ahead(self) -> None:
        counted_next = 1 + self._steps_taken.pending
        steps = range(self.steps + 1, self.steps + 1 + counted_next)
        ends = self.total_steps is not None and steps[-1] > self.total_steps
        self._seen.watch(not ends and any(self.policies.schedule.update_number(step) is not None for step in steps))

    def _update(self, number: int, taken: int) -> UpdateReport:
        self.parallel.before_update()
        awaited, workers = self._seen.awaited, self.parallel.workers
        self._seen.share(workers)
        moving = self.carrier.moving_gradients(self._parameters().values()), self._averages.moving()
        device = next(iter(self.weights.values())).core.device
        with moving[0], moving[1], full_precision(device):
            waiting = self._waiting.measure(workers, self.steps, taken)
            facts: Any = {"step": self.steps, "update_number": number, "waiting": waiting}
            facts |= {"seen": self._seen.found, "comparable": self._seen.comparable}
            report = update_bases(self.weights, self.config, self.policies, self.carrier, workers, **facts)
        size = self._size.with_ranks(self.weights)
        report = replace(report, compressed_bytes=size.compressed.bytes, dense_bytes=size.dense.bytes)
        self._step_scale.refresh()
        self._restored.note()
        if report.factorised or report.changed:
            self.parallel.after_update()
        if self.check:
            workers.require_equal(digests(self.weights, self.carrier.optimizer, self.steps))
        unseen = notices.unseen(report, [name for name in awaited if name not in self._seen.found])
        self._warn({"large drop": notices.large_drop(report, self.config), "unseen": unseen})
        return report

    def _new_steps(self) -> int:
        """The optimizer steps since the last call.

        Where the optimizer has taken none at all and no gradient ever came, nothing trains: the schedule is driven by
        hand, and each call counts as one.
        """
        taken = self._steps_taken.since_last_asked()
        if self._steps_taken.any or self._gradients.came:
            self._gradients.end()
            return taken
        if self.parallel.sharded or any(p.grad is not None for p in self._parameters().values()):
            return 0  # FSDP2 keeps the gradients of a window to itself
        self._warn({"no steps": notices.no_steps(type(self.carrier.optimizer).__name__)})
        return 1

    def follow(self, average: Any) -> None:
        """Move an average of the weights (EMA, SWA) along at every update; without this it would be wrong after one.

        Args:
            average: a copy of the model that is averaged into, such as `torch.optim.swa_utils.AveragedModel` or timm's
                `ModelEmaV3`; or the tensors of an average in the order of `model.parameters()`, all or those that
                train, or what holds them as `.shadow_params`, such as diffusers' `EMAModel`.

        Raises:
            ValueError: the average does not fit the model.
            NotImplementedError: the model is sharded over processes.
        """
        if self.parallel.sharded:
            raise NotImplementedError("Averages of a model that FSDP2 has sharded cannot follow its bases yet.")
        self._averages.follow(average)

    def summary(self) -> str:
        """How the run went, in a few sentences; warns where half of the layers or more are no smaller than dense."""
        if self.config.residual:
            return ending.residual_summary(self.weights, self.steps)
        missed = {"missed": target.missed(self._size, self.weights, self.policies, self.steps)}
        self._warn(ending.afterwards(self.weights, self.config, self.steps) | missed)
        return ending.summary(self.weights, self._size.with_ranks(self.weights), self.steps)

    def close(self) -> None:
        """Look into no further step, since training has ended, perhaps right before an update."""
        self._seen.watch(False)

    def _warn(self, said: Mapping[str, str | None]) -> None:
        """Each kind once."""
        for kind, message in said.items():
            if message is not None and kind not in self._warned:
                self._warned.add(kind)
                tell(message)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON. Bases and ranks are in the adapter, moments in the optimizer; under FSDP ranks are here."""
        live = {name: weight.sharded_rank for name, weight in self.weights.items() if weight.sharded_rank}
        scales = self._step_scale.state_dict()
        state = {"live_ranks": live, "step_scales": scales, "settling": self._waiting.state_dict()}
        state["pending"] = self._steps_taken.pending  # in a checkpoint that is written before `step` is called
        return {"steps": self.steps, **{name: value for name, value in state.items() if value}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`; load the adapter and the optimizer's state as well.

        Raises:
            ValueError: it is no such state; this one is unchanged.
        """
        steps, ranks = checked_state(state, {name: weight.full_rank for name, weight in self.weights.items()})
        scales, settling = checked_scales(state), checked_settling(state, self.weights)
        self.steps = steps
        self._steps_taken.wait_for(state.get("pending", 0))
        for name, weight in self.weights.items():
            if name in ranks and is_sharded(weight.core):  # elsewhere shapes tell the rank
                weight.sharded_rank = ranks[name]
        self._step_scale.load_state_dict(scales)  # for the ranks of now
        self._waiting.load_state_dict(settling)
        self._look_ahead()
