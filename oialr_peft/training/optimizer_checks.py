"""Whether an optimizer and an adapter fit each other, asked before step 1."""

from __future__ import annotations

from collections.abc import Mapping

from ..layer import OIALRLayer
from ..moments import MomentCarrier
from ..weights import AdaptedWeight
from ..workers.sharding import is_sharded


def check_optimizer(
    carrier: MomentCarrier, weights: Mapping[str, AdaptedWeight], layers: Mapping[str, OIALRLayer], bases: str
) -> None:
    """Raise where the optimizer would not train the adapter.

    Raises:
        ValueError: the adapter is frozen or merged, or the optimizer does not hold its parameters, or keeps one state
            for all of them.
        NotImplementedError: the parameters are sharded, and `bases` is not "frozen".
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
    if bases != "frozen" and any(map(is_sharded, parameters.values())):
        raise NotImplementedError(
            f"FSDP2 shards by shape, so bases='{bases}', the default of `target_size`, cannot change what trains. Use "
            "OIALRConfig(bases='frozen'), or DistributedDataParallel."
        )
