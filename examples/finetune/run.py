"""One base, every method fine-tuned from it: rates chosen by validation with the first seed, then all seeds; JSON.

What the output file has already, of the same steps, is not run again: a wider grid costs its new rates alone.

python run.py --data DATA --task plays --output results/plays.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from methods import METHODS, layers_of
from peft import PeftModel
from pictures import Pictures
from plays import Plays
from sentences import Sentences
from torch import nn

import oialr_peft
from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.plain import model_size


TASKS: dict[str, Any] = {"plays": Plays, "pictures": Pictures, "sentences": Sentences}


def train(net: Any, batches: Iterator[dict[str, torch.Tensor]], steps: int, rate: float) -> nn.Module:
    """AdamW with a warm-up over a tenth of the steps and a linear way down to zero."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    follow, model = following(net, optimizer, steps), called(net)
    warm = max(1, steps // 10)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warm, (steps - step) / (steps - warm + 1))
        model(**next(batches)).loss.backward()
        optimizer.step()
        follow(step)
        optimizer.zero_grad()
    return net


def called(net: Any) -> nn.Module:
    """What a training step calls: AdaLoRA's penalty is added in the tuner, which a PeftModel without a task skips."""
    return net.base_model if isinstance(config_of(net), peft.AdaLoraConfig) else net


def config_of(net: Any) -> Any:
    """Of the adapter; None without one."""
    return getattr(net, "peft_config", {}).get("default")


def following(net: Any, optimizer: torch.optim.Optimizer, steps: int) -> Callable[[int], Any]:
    """What a method wants done after each step, before gradients are cleared."""
    config = config_of(net)
    if isinstance(config, OIALRConfig):
        updater = OIALRUpdater(net, optimizer, total_steps=steps)
        return lambda step: updater.step()
    if isinstance(config, peft.AdaLoraConfig):
        return net.base_model.update_and_allocate
    return lambda step: None


@torch.no_grad()
def saved(net: Any, start: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Bytes of the weights file, and by how much outputs differ after loading, as a share of the largest."""
    if not isinstance(net, PeftModel):
        return {"bytes": sum(p.nbytes for p in net.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
        loaded = PeftModel.from_pretrained(start, folder)  # type: ignore[arg-type]
    here, there = net(**batch).logits, loaded(**batch).logits
    found = {"bytes": size, "reload": float((here - there).abs().max() / here.abs().max())}
    config = config_of(net)
    if isinstance(config, OIALRConfig) and not config.residual:
        found["held"] = model_size(net).share
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare/, cifar10-jpeg/ and SST2/")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--tiny", action="store_true", help="models and data for a test")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base-steps", type=int, help="of pretraining; the task's own by default")
    parser.add_argument("--steps", type=int, help="of fine-tuning; the task's own by default")
    parser.add_argument("--base", type=Path, help="file that keeps the pretrained base for the next call")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def pretrained(task: Any, steps: int, file: Path | None) -> nn.Module:
    """The base, from its file if there is one."""
    torch.manual_seed(0)
    if file is not None and file.exists():
        base = task.untrained()
        base.load_state_dict(torch.load(file))
        return base
    base, batches = task.pretraining()
    train(base, batches, steps, task.base_rate)
    if file is not None:
        torch.save(base.state_dict(), file)
    return base


def record_of(parsed: argparse.Namespace, task: Any) -> dict[str, Any]:
    """What an earlier run wrote to the output, or a new record."""
    steps = {"base_steps": parsed.base_steps or task.base_steps, "steps": parsed.steps or task.steps}
    if parsed.output.exists():
        made = json.loads(parsed.output.read_text())
        fixed = {**steps, "data": task.digests}
        if other := {name: made[name] for name, value in fixed.items() if made[name] != value}:
            raise SystemExit(f"{parsed.output} is of {other}, not of {fixed}; name another --output.")
        return made | {"rates": parsed.rates, "seeds": parsed.seeds}
    versions = {name: module.__version__ for name, module in (("torch", torch), ("transformers", transformers))}
    versions |= {"peft": peft.__version__, "oialr_peft": oialr_peft.__version__, "python": sys.version.split()[0]}
    versions |= {"machine": platform.machine(), "threads": "1"}
    given = {"task": parsed.task, "rates": parsed.rates, "seeds": parsed.seeds, **steps}
    return {**given, "data": task.digests, "trivial": task.trivial(), "versions": versions, "seconds": 0.0, "runs": []}


def run(name: str, seed: int, rate: float, bar: Any, task: Any, base: nn.Module, steps: int) -> dict[str, Any]:
    """One method trained at one rate; where validation is not worse than `bar`, its file and test figure too."""
    torch.manual_seed(seed)
    untrained = task.untrained()
    torch.manual_seed(seed)
    start = task.start(untrained if name == "from scratch" else base)
    again = task.start(base)
    net, rank = METHODS[name](start, layers_of(start, task), steps)
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    train(net, task.batches(seed), steps, rate)
    validation = task.figure(net, "validation")
    made = {"method": name, "rank": rank, "seed": seed, "rate": rate, "trainable": trainable, "validation": validation}
    if bar is not None and task.best(bar, validation) != validation:
        return made
    return made | saved(net, again, next(task.batches(seed))) | {"test": task.figure(net, "test")}


def main() -> None:
    parsed = arguments()
    torch.set_num_threads(1)
    task = TASKS[parsed.task](parsed.data, parsed.tiny)
    record = record_of(parsed, task)
    first, *others = parsed.seeds
    base = pretrained(task, record["base_steps"], parsed.base)
    if not task.heads:
        record["before"] = task.figure(base, "test")

    def found(name: str, seed: int, rate: float) -> dict[str, Any]:
        for made in record["runs"]:
            if (made["method"], made["seed"], made["rate"]) == (name, seed, rate):
                return made
        alike = [made for made in record["runs"] if seed == first and (made["method"], made["seed"]) == (name, first)]
        bar = task.best((made["validation"] for made in alike), default=None)
        began = time.process_time()
        made = run(name, seed, rate, bar, task, base, record["steps"])
        record["seconds"] += time.process_time() - began
        record["runs"].append(made)
        record["runs"].sort(key=lambda made: (list(METHODS).index(made["method"]), made["seed"], made["rate"]))
        parsed.output.parent.mkdir(parents=True, exist_ok=True)
        parsed.output.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(made), flush=True)
        return made

    for name in parsed.methods:
        if name == "head alone" and not task.heads:
            continue
        tried = [found(name, first, rate) for rate in parsed.rates]
        best = task.best(tried, key=lambda made: made["validation"])
        for seed in others:
            found(name, seed, best["rate"])


if __name__ == "__main__":
    main()
