"""OIALRCallback: the Trainer's events forwarded to an OIALRUpdater."""

from __future__ import annotations

import copy
import os
import weakref
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback
from transformers.training_args import ParallelMode

from ..compat.transformers_ import calling_handler
from ..errors import tell
from ..layer import adapted_weights
from ..update_report import UpdateReport
from ..workers.sharding import fsdp_modules
from .ending import higher_ranks, rank_or_dense
from .processing import remember_processing
from .saved_state import progress_in
from .trace import Trace
from .updater import OIALRUpdater


class OIALRCallback(TrainerCallback, ExportableState):
    """Makes the basis updates of an OIALR model in the Trainer: `Trainer(..., callbacks=[OIALRCallback()])`.

    Every update prints one line, the end of the run a few sentences. As numbers (`oialr/mean_rank`,
    `oialr/trainable_parameters`, `oialr/update_seconds`, ...) updates go to the Trainer's history and to whatever
    `report_to` names. The step count is saved in the Trainer's checkpoints, so a resumed run goes on where it stopped.

    Args:
        trace: path of a JSON-lines file that gets one line per update with the rank of every layer, for plots. `None`
            (default) writes none.
        check: compare what the processes hold after every update, as in `OIALRUpdater`.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: before step 1, as `OIALRUpdater`.
    """

    def __init__(self, trace: str | os.PathLike | None = None, *, check: bool = False) -> None:
        self.trace = None if trace is None else os.path.expanduser(trace)
        self.check = check
        self.progress: dict[str, int] = {"steps": 0}
        self.updater: OIALRUpdater | None = None
        self._trace: Trace | None = None
        self._ranks: dict[str, int | None] = {}  # after the last update
        self._first: dict[str, int | None] = {}  # before the first
        self._core: weakref.ref | None = None  # the first that the updater trains

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        handler = calling_handler()
        if handler is not None and sum(isinstance(c, OIALRCallback) for c in handler.callbacks) > 1:
            raise ValueError("The Trainer has several OIALRCallbacks; every update would be made twice. Pass one.")
        if getattr(args, "parallel_mode", None) == ParallelMode.NOT_DISTRIBUTED:
            raise NotImplementedError(
                "One process on several GPUs is nn.DataParallel, whose copies of a layer share the first GPU's "
                "factors. Start a process for each GPU (`torchrun`, `accelerate launch`), or show one "
                "(CUDA_VISIBLE_DEVICES=0)."
            )
        model = _trained_module(kwargs["model"])
        progress = self._progress_of(model, state)
        _refuse_best_of_another_name(args, model)
        total = progress["steps"] + progress.get("pending", 0) + state.max_steps - state.global_step
        self.updater = OIALRUpdater(model, kwargs["optimizer"], total_steps=total, check=self.check)
        self.updater.load_state_dict(progress)
        self._core = weakref.ref(next(iter(self.updater.weights.values())).core)
        remember_processing(model, kwargs.get("processing_class"))
        self._ranks = rank_or_dense(self.updater.weights)
        if self.updater.steps == 0:
            self._first = self._ranks
        self._trace = None
        if self.trace is not None and state.is_world_process_zero:
            self._trace = Trace(self.trace, new=self.updater.steps == 0)
        if getattr(args, "fsdp", None) and not self.updater.parallel.sharded:
            tell(
                "The Trainer was asked for FSDP but does not shard this model: with `use_cpu` transformers runs DDP "
                "instead. Every process holds the whole model."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.updater is None:
            raise RuntimeError("OIALRCallback was added after training began; pass it to the Trainer's `callbacks`.")
        report = self.updater.step()
        self.progress = self.updater.state_dict()
        if report is not None:
            self._ranks = rank_or_dense(self.updater.weights)
            if state.is_world_process_zero:
                self._log(report, args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.updater is None:
            return
        if message := higher_ranks(self._ranks, self.updater.weights, state.best_model_checkpoint):
            tell(message)
        self.updater.close()
        summary = self.updater.summary()
        if state.is_world_process_zero:
            tqdm.write(summary)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into its checkpoints' trainer_state.json."""
        progress = self.progress if self.updater is None else self.updater.state_dict()  # with steps not yet told of
        return {"args": {"trace": self.trace, "check": self.check}, "attributes": {"progress": progress}}

    def _progress_of(self, model: Any, state: Any) -> dict[str, int]:
        """The step count to go on from: the checkpoint's when resuming, this callback's for the same adapter, else 0.

        The Trainer restores callbacks by itself only if `restore_callback_states_from_checkpoint` is set, so it is
        read here. A checkpoint made without this callback counts the Trainer's steps.
        """
        if state.global_step == 0:
            fsdp_modules(model)  # so that cores are what they were at the start
            cores = (weight.core for weight in adapted_weights(model).values())
            known = self._core is not None and next(cores, None) is self._core()
            return self.progress if known and not self._starts_over(model) else {"steps": 0}
        saved = state.stateful_callbacks.get(type(self).__name__)
        return progress_in(saved) if saved else {"steps": state.global_step}

    def _starts_over(self, model: Any) -> bool:
        """Whether the model is as it began, or dense again: its first state was loaded, for another fold perhaps."""
        ranks = rank_or_dense(adapted_weights(model))
        dense = all(rank is None for rank in ranks.values())
        return ranks != self._ranks and (dense or ranks == self._first)

    def _log(self, report: UpdateReport, args: Any, state: Any, control: Any) -> None:
        """To the trace, the Trainer's history and its trackers as numbers; to the console as one line of words."""
        if self._trace is not None:
            self._trace.append(report)
        tqdm.write(str(report))
        logs = {**report.as_logs(), "epoch": state.epoch}
        state.log_history.append({**logs, "step": state.global_step})
        if (handler := calling_handler()) is not None:
            trackers = copy.copy(handler)
            console = (PrinterCallback, ProgressCallback)
            trackers.callbacks = [callback for callback in handler.callbacks if not isinstance(callback, console)]
            # Not its `on_log`, which would mark the Trainer's own log of this step as done.
            trackers.call_event("on_log", args, state, control, logs=logs)


def _trained_module(model: Any) -> nn.Module:
    """What the Trainer trains, of setfit's the body that has the adapter."""
    found = model if isinstance(model, nn.Module) else getattr(model, "model_body", None)
    if not isinstance(found, nn.Module):
        raise TypeError(
            f"This Trainer trains a {type(model).__name__}, which is no torch module. Make the updates by an "
            "`OIALRUpdater(module, optimizer)` of the module that has the adapter."
        )
    return found


def _refuse_best_of_another_name(args: Any, model: Any) -> None:
    """The Trainer looks for the best adapter in the checkpoint itself, where PEFT saves that of one name alone."""
    names = {weight.adapter for weight in adapted_weights(model).values()} - {"default"}
    if names and getattr(args, "load_best_model_at_end", False):
        raise ValueError(
            f"`load_best_model_at_end` brings back the adapter 'default' alone, and '{names.pop()}' trains: at the "
            "end the model would be the last one, or have another's weights. Name the adapter 'default', or set it to "
            "False and load the best with `model.load_adapter(checkpoint/NAME, NAME)`."
        )
