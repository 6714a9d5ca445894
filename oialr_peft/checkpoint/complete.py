"""Which checkpoint of a Trainer run is whole."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from zipfile import is_zipfile

from ..files import read_header


# Of an adapter, also one with a name of its own; of a whole model; of FSDP's and DeepSpeed's sharded checkpoints.
_WEIGHTS = (
    *("adapter_model.*", "*/adapter_model.*", "model*.safetensors", "pytorch_model*.bin"),
    *("pytorch_model_fsdp*", "global_step*"),
)


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest checkpoint of a Trainer run that was written to its end, or None.

    For `trainer.train(resume_from_checkpoint=...)` after a crash: a process that is killed while it saves leaves a
    newer, half-written one, which `resume_from_checkpoint=True` would take. The Trainer writes trainer_state.json
    last. Folders of other names (`checkpoint-4-backup`) and those without whole weights are passed over.
    """
    folders = {int(p.name[11:]): p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"\d+", p.name[11:])}
    return next((str(folders[step]) for step in sorted(folders, reverse=True) if _is_complete(folders[step])), None)


def _is_complete(folder: Path) -> bool:
    weights = [file for pattern in _WEIGHTS for file in folder.glob(pattern)]
    try:
        for file in weights:
            if file.suffix == ".safetensors":
                read_header(file)
        if not all(map(is_zipfile, [*folder.glob("*.pt"), *folder.glob("*.pth")])):  # as torch.save writes them
            return False
        state = json.loads((folder / "trainer_state.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return bool(weights) and isinstance(state, dict) and isinstance(state.get("global_step"), int)
