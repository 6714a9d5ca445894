"""Does a compressed checkpoint load in less memory? Process peaks, dense against compressed.

    python load_memory.py --share 0.25 --output results/load_memory.json

A BERT of base size is made at random, saved dense, and saved by `save_compressed` at the given share of the full rank.
Each is loaded in fresh processes, in turn. Weights are mapped from the file, and pages count only once they are read,
so there are two figures: the peak after one forward over eight tokens, which reads eight rows of the embeddings, and
the peak after every weight was read. Both are resident memory minus what the process held after its imports.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import transformers
from peft import get_peft_model
from timing import ratio, write
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from oialr_peft import OIALRConfig, save_compressed


PEAKS = ("forward", "every_weight")
LOAD = """
import resource, sys, torch, transformers, oialr_peft
import transformers.models.bert.modeling_bert

def status(name):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(name)).split()[1]) * 1024

before = status("VmRSS")
model = transformers.BertModel.from_pretrained(sys.argv[1])
with torch.no_grad():
    model(input_ids=torch.arange(8)[None])
first = status("VmHWM") - before
sum(float(tensor.sum()) for tensor in model.state_dict().values())
print(first, status("VmHWM") - before)
"""


@dataclass
class Settings:
    """Settings of the measurement."""

    share: float = field(default=0.25, metadata={"help": "Rank as a share of min(out, in)."})
    repeats: int = field(default=3, metadata={"help": "Loads of each kind."})
    output: str = field(default="results/load_memory.json", metadata={"help": "Results file."})


def peaks(folder: Path) -> dict[str, int]:
    """Returns the bytes that a fresh process takes at its peak, after one forward and after all weights were read."""
    command = [sys.executable, "-c", LOAD, str(folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    return dict(zip(PEAKS, map(int, printed.split()), strict=True))


def main() -> None:
    """Makes the two checkpoints, loads them in turn, prints and writes the figures."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    with tempfile.TemporaryDirectory() as name:
        folders = {"dense": Path(name) / "dense", "compressed": Path(name) / "compressed"}
        model = transformers.BertModel(transformers.BertConfig())
        model.save_pretrained(folders["dense"])
        config = OIALRConfig(r=settings.share, init="lowrank")
        save_compressed(get_peft_model(model, config), folders["compressed"])
        found: dict[str, dict[str, list[float]]] = {peak: {kind: [] for kind in folders} for peak in PEAKS}
        for _ in tqdm(range(settings.repeats), desc="loads"):
            for kind, folder in folders.items():
                for peak, count in peaks(folder).items():
                    found[peak][kind].append(count)
        sizes = {kind: (folder / "model.safetensors").stat().st_size for kind, folder in folders.items()}
    rows: list[dict[str, Any]] = [{"kind": kind, "file": size} for kind, size in sizes.items()]
    for row in rows:
        row |= {f"{peak}/dense": ratio(counts, row["kind"], "dense") for peak, counts in found.items()}
    write(settings.output, rows, peak_bytes=found)


if __name__ == "__main__":
    main()
