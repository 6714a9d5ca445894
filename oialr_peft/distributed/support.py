"""What is not supported on several processes is refused by name before the first step."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor


_WORKS = "OIALR trains on several processes with DistributedDataParallel (the Trainer's and Accelerate's default)."


def refuse_unsupported(model: nn.Module, optimizer: Any) -> None:
    """Raise for sharded models.

    Raises:
        NotImplementedError: FSDP, DeepSpeed ZeRO or tensor parallel, naming what works.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise NotImplementedError(f"FSDP (version 1) is not supported. {_WORKS}")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise NotImplementedError(
                f"'{name}' is a DTensor: FSDP2 and tensor parallel are not supported yet. {_WORKS}"
            )
        if hasattr(parameter, "ds_id"):
            raise NotImplementedError(f"'{name}' is partitioned by DeepSpeed ZeRO-3, which is not supported. {_WORKS}")
    inner = getattr(optimizer, "optimizer", optimizer)
    if type(inner).__module__.startswith("deepspeed"):
        raise NotImplementedError(
            f"{type(inner).__name__} of DeepSpeed flattens parameters, so ranks cannot change. {_WORKS}"
        )
