"""What is not supported on several processes is refused by name before the first step."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor


_WORKS = (
    "OIALR trains on several processes with DistributedDataParallel (the Trainer's and Accelerate's default), and "
    "with FSDP2's `fully_shard` in a loop of your own."
)


def refuse_unsupported(model: nn.Module, optimizer: Any) -> None:
    """Raise for what cannot keep its ranks true.

    Raises:
        NotImplementedError: FSDP 1, HSDP, DeepSpeed ZeRO, tensor parallel, ZeroRedundancyOptimizer, or FSDP2 before
            factorisation, naming what works.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise NotImplementedError(f"FSDP (version 1) is not supported. {_WORKS}")
    fsdp2 = any(isinstance(module, FSDPModule) for module in model.modules())
    for name, parameter in model.named_parameters():
        if fsdp2 and isinstance(parameter, DTensor) and any(p.is_replicate() for p in parameter.placements):
            raise NotImplementedError(
                f"'{name}' is sharded within groups and replicated between them (HSDP: FSDP2 on a "
                f"{parameter.device_mesh.ndim}-dimensional mesh), which is not supported. {_WORKS}"
            )
        if isinstance(parameter, DTensor) and not (fsdp2 and parameter.device_mesh.ndim == 1):
            raise NotImplementedError(
                f"'{name}' is a DTensor on a {parameter.device_mesh.ndim}-dimensional mesh: tensor parallel and its "
                f"combinations are not supported. {_WORKS}"
            )
        if isinstance(parameter, DTensor) and name.rpartition(".")[0].endswith("oialr_weight"):
            raise NotImplementedError(
                f"'{name}' is still dense, and FSDP2 shards by shape, so it cannot be factorised later. Factorise "
                "before `fully_shard`: use OIALRConfig(delay=0), or load an adapter saved after its factorisation."
            )
        if hasattr(parameter, "ds_id"):
            raise NotImplementedError(f"'{name}' is partitioned by DeepSpeed ZeRO-3, which is not supported. {_WORKS}")
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, for it takes a third of a second to import

    inner = getattr(optimizer, "optimizer", optimizer)
    if isinstance(inner, ZeroRedundancyOptimizer):
        raise NotImplementedError(
            "ZeroRedundancyOptimizer keeps the moments of a parameter on one process and sends parameters in their "
            "first shapes, so ranks cannot change. Use the torch optimizer without it, or FSDP2's `fully_shard`, "
            "which shards the moments too."
        )
    if type(inner).__module__.startswith("deepspeed"):
        raise NotImplementedError(
            f"{type(inner).__name__} of DeepSpeed flattens parameters, so ranks cannot change. {_WORKS}"
        )
