"""One base, every method fine-tuned from it: rates chosen by validation with the first seed, then all seeds; JSON.

What the output file has already, of the same steps, is not run again: a wider grid costs its new rates alone.

python run.py --data DATA --output results/plays.json
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from corpora import Corpus, model, plays, sources
from methods import METHODS
from torch import nn

import oialr_peft
from oialr_peft import OIALRConfig, OIALRUpdater


def train(net: Any, corpus: Corpus, seed: int, steps: int, rate: float) -> nn.Module:
    """AdamW with a warm-up over a tenth of the steps and a linear way down to zero."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    config = getattr(net, "peft_config", {}).get("default")
    updater = OIALRUpdater(net, optimizer) if isinstance(config, OIALRConfig) else None
    warm = max(1, steps // 10)
    batches = corpus.batches(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warm, (steps - step) / (steps - warm + 1))
        tokens, following = next(batches)
        F.cross_entropy(net(tokens).mT, following).backward()
        optimizer.step()
        optimizer.zero_grad()
        if updater is not None:
            updater.step()
    return net


def size_of(net: Any) -> dict[str, int]:
    """What trains, and the bytes of the weights file."""
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    if not hasattr(net, "peft_config"):
        return {"trainable": trainable, "bytes": sum(p.nbytes for p in net.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        return {"trainable": trainable, "bytes": (Path(folder) / "adapter_model.safetensors").stat().st_size}


def earlier(parsed: argparse.Namespace) -> dict[str, Any]:
    """What an earlier run wrote to the output, if it was of the same model and steps."""
    if not parsed.output.exists():
        return {}
    made = json.loads(parsed.output.read_text())
    alike = all(made[name] == getattr(parsed, name) for name in ("size", "base_steps", "steps"))
    return made if alike else {}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare/")
    parser.add_argument("--size", default="small", help="of the model, as in examples/quality")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    parsed = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began = time.perf_counter()
    code, text = sources(parsed.size), plays(parsed.data, parsed.size)
    base = train(model(parsed.size), code, 0, parsed.base_steps, 2e-3)
    print(f"base: {code.loss(base, 'test'):.4f} on sources, {text.loss(base, 'test'):.4f} on plays", flush=True)

    made = earlier(parsed)

    def run(name: str, seed: int, rate: float) -> dict[str, Any]:
        make, rank = METHODS[name]
        for found in made.get("tried", []) + made.get("runs", []):
            if (found["method"], found["rank"], found["seed"], found["rate"]) == (name, rank, seed, rate):
                return found
        torch.manual_seed(seed)
        net = make(copy.deepcopy(base), rank)
        size = size_of(net)
        train(net, text, seed, parsed.steps, rate)
        losses = {part: text.loss(net, part) for part in ("validation", "test")}
        found = {"method": name, "rank": rank, "seed": seed, "rate": rate, **size, **losses}
        print(json.dumps(found), flush=True)
        return found

    first, *others = parsed.seeds
    tried = [run(name, first, rate) for name in parsed.methods for rate in parsed.rates]
    runs = []
    for name in parsed.methods:
        best = min((r for r in tried if r["method"] == name), key=lambda r: r["validation"])
        runs += [best, *(run(name, seed, best["rate"]) for seed in others)]
    given = {key: value for key, value in vars(parsed).items() if key not in ("data", "output", "methods")}
    versions = {"torch": torch.__version__, "peft": peft.__version__, "oialr_peft": oialr_peft.__version__}
    versions |= {"python": sys.version.split()[0], "machine": platform.machine(), "threads": "1"}
    before = {"sources": code.loss(base, "test"), "plays": text.loss(base, "test")}
    digests = {"sources": code.digest, "plays": text.digest}
    seconds = round(time.perf_counter() - began) + made.get("seconds", 0)
    record = {**given, "before": before, "texts": digests, "tried": tried, "runs": runs, "versions": versions}
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(json.dumps({**record, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
