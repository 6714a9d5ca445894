"""Whether an optimizer and an adapter fit each other, asked before step 1."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from ..errors import OIALRWarning
from ..layer import OIALRLayer
from ..moments import MomentCarrier
from ..weights import AdaptedWeight


def check_optimizer(
    carrier: MomentCarrier, weights: Mapping[str, AdaptedWeight], layers: Mapping[str, OIALRLayer]
) -> None:
    """Raise where the optimizer would not train the adapter; moments of another rank start afresh, with a warning.

    Raises:
        ValueError: the adapter is frozen or merged, or the optimizer does not hold its parameters, or keeps one state
            for all of them.
    """
    held = {id(p) for group in carrier.optimizer.param_groups for p in group["params"]}
    parameters = {name: weight.core for name, weight in weights.items()}
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    if len(frozen) == len(parameters):
        raise ValueError(
            f"The OIALR adapter is frozen ('{frozen[0]}'). Load it with `is_trainable=True` to train it further."
        )
    if frozen:
        raise ValueError(
            f"{len(frozen)} of {len(parameters)} layers of the OIALR adapter are frozen, first '{frozen[0]}', and "
            "updates would cut them all the same. Leave them out with `exclude_modules`."
        )
    for name, layer in layers.items():
        active = [adapter for adapter in layer.active_adapters if adapter in layer.weights]
        if len(trained := [adapter for adapter in active if layer.weights[adapter].core.requires_grad]) > 1:
            raise ValueError(
                f"Several OIALR adapters of one layer train, {trained} of '{name}', and an updater is of one. Train "
                "one at a time: `set_adapter` with one name."
            )
    if merged := [name for name, layer in layers.items() if name in weights and layer.merged]:
        raise ValueError(f"The OIALR adapter is merged ('{merged[0]}'). Call `unmerge_adapter()` to train it.")
    if missing := [name for name, p in parameters.items() if id(p) not in held]:
        raise ValueError(
            f"The optimizer does not hold the OIALR parameters of {len(missing)} of {len(parameters)} layers, "
            f"first '{missing[0]}'. Create the optimizer after the adapter, from `model.parameters()`."
        )
    if all(weight.base is not None for weight in weights.values()):
        return  # no update comes, so nothing is carried
    if any(cls.__name__ == "LBFGS" for cls in type(carrier.optimizer).__mro__):
        raise ValueError(
            "LBFGS keeps the history of all parameters as one flat vector, which does not fit any more once a rank "
            "falls. Train an OIALR adapter with an optimizer that has a state per parameter, such as AdamW or Muon."
        )
    if stale := carrier.drop_stale(parameters):
        warnings.warn(
            f"The optimizer held moments of another rank for {len(stale)} layers, first '{stale[0]}': an adapter "
            "was loaded under it. They start afresh.",
            OIALRWarning,
            stacklevel=4,
        )
