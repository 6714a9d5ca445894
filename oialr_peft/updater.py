"""OIALRUpdater: when the updates happen. Used like a learning-rate scheduler, in any loop."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from .config import OIALRConfig
from .errors import OIALRWarning
from .layers import active_layers
from .moments import MomentCarrier
from .update import UpdateReport, update_bases


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

    Args:
        model: a PEFT model with an OIALR adapter, or a transformers model with one (`model.add_adapter`).
        optimizer: the optimizer that trains it, also as wrapped by Accelerate. Parameters keep their identity through
            every update, so parameter groups, schedulers and wrappers stay valid.

    Raises:
        TypeError, ValueError: the model has no active OIALR adapter, or the optimizer does not hold its parameters.
        NotImplementedError: training runs on several processes.
    """

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        _refuse_several_processes()
        self.layers = active_layers(model)
        if not self.layers:
            raise TypeError(
                f"{type(model).__name__} has no active OIALR adapter. Make one with "
                "`get_peft_model(model, OIALRConfig())` before training, or leave the OIALR callback or updater away."
            )
        adapter = self.layers[0][2]
        self.config = _config_of(model, adapter)
        self.optimizer = optimizer
        self.carrier = MomentCarrier(optimizer, self.config.moments)
        self.steps = 0
        self._watch = next((watch for _, layer, _ in self.layers if (watch := layer.watches.get(adapter))), None)
        self._check_optimizer()

    def step(self) -> UpdateReport | None:
        """Count one optimizer step; where an update is due after it, make it and report it.

        Calls inside an accumulation window of Accelerate and steps that its gradient scaler skipped are not counted.
        """
        if self._watch is not None:
            self._watch.reset()
        window = getattr(self.optimizer, "gradient_state", None)
        if getattr(self.optimizer, "step_was_skipped", False) or not getattr(window, "sync_gradients", True):
            return None
        self.steps += 1
        number = self.config.schedule.update_number(self.steps)
        if number is None:
            return None
        return update_bases(self.layers, self.config, self.carrier, step=self.steps, update_number=number)

    def state_dict(self) -> dict[str, int]:
        """Plain JSON. Ranks and bases are in the adapter, moments in the optimizer."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a `state_dict()`; load the adapter and the optimizer's state as well."""
        self.steps = int(state["steps"])

    def _check_optimizer(self) -> None:
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        parameters = {name: layer.parameter(adapter) for name, layer, adapter in self.layers}
        frozen = [name for name, p in parameters.items() if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"The OIALR adapter is frozen ('{frozen[0]}'). Load it with `is_trainable=True` to train it further."
            )
        if merged := [name for name, layer, _ in self.layers if layer.merged]:
            raise ValueError(f"The OIALR adapter is merged ('{merged[0]}'). Call `unmerge_adapter()` to train it.")
        if missing := [name for name, p in parameters.items() if id(p) not in held]:
            raise ValueError(
                f"The optimizer does not hold the OIALR parameters of {len(missing)} of {len(parameters)} layers, "
                f"first '{missing[0]}'. Create the optimizer after the adapter, from `model.parameters()`."
            )
        if stale := self.carrier.drop_stale(parameters):
            warnings.warn(
                f"The optimizer held moments of another rank for {len(stale)} layers, first '{stale[0]}': an adapter "
                "was loaded under it. They start afresh.",
                OIALRWarning,
                stacklevel=3,
            )


def _config_of(model: nn.Module, adapter: str) -> OIALRConfig:
    """The adapter's config, held by the model or by the part of it that has the adapter (sentence-transformers)."""
    for module in model.modules():
        config = (getattr(module, "peft_config", None) or {}).get(adapter)
        if isinstance(config, OIALRConfig):
            return config
    raise TypeError(f"{type(model).__name__} has OIALR layers, but no OIALRConfig of the adapter {adapter!r}.")


def _refuse_several_processes() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if (size := torch.distributed.get_world_size()) > 1:
            raise NotImplementedError(
                f"OIALR does not train on several processes yet (world size {size}): ranks could drift apart. Train "
                "on one process; gradient accumulation gives the same batch."
            )
