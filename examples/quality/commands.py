"""The commands that make the results again, read off the results."""

from __future__ import annotations

from collections import defaultdict
from typing import Any


def sweeps(folder: str, results: list[dict[str, Any]]) -> list[str]:
    """The calls of sweep.py for one folder of results; methods of the same ranks, rates and seeds share one."""
    grids: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    names = ("method", "optimizer", "rank", "steps", "size", "task")
    for method, optimizer, rank, steps, size, task in dict.fromkeys(tuple(r[n] for n in names) for r in results):
        own = [r for r in results if (r["method"], r["optimizer"], r["rank"]) == (method, optimizer, rank)]
        rates = tuple(sorted({r["lr"] for r in own if r["seed"] == 0}))
        seeds = tuple(sorted({r["seed"] for r in own}))
        grids[task, optimizer, steps, size, 0.25 if method == "dense" else rank, rates, seeds].append(method)
    return [_call(folder, key, methods) for key, methods in sorted(grids.items())]


def _call(folder: str, key: tuple[Any, ...], methods: list[str]) -> str:
    task, optimizer, steps, size, rank, rates, seeds = key
    options = {"--task": task, "--optimizer": optimizer, "--steps": steps, "--methods": " ".join(methods)}
    options |= {"--rates": " ".join(f"{rate:g}" for rate in rates)}
    options |= {"--ranks": f"{rank:g}"} if rank != 0.25 else {}
    options |= {"--seeds": " ".join(map(str, seeds))} if seeds != (0, 1, 2) else {}
    options |= {"--size": size} if size != "small" else {}
    options |= {"--output": f"results/{folder.split('/')[0]}"} if "/" in folder else {}
    return "python sweep.py --data DATA " + " ".join(f"{name} {value}" for name, value in options.items())


def runs_of_wide(runs: list[dict[str, Any]]) -> list[str]:
    """The calls of run.py for the wide model, for each of its seeds."""
    return [
        f"python run.py --data DATA --size wide --method {r['method']} --optimizer {r['optimizer']} --lr {r['lr']:g} "
        f"--steps {r['steps']} --points {len(r['curve'])} --seed {r['seed']} "
        f"--output results/wide/{r['method']}_{r['steps']}_seed{r['seed']}.json"
        for r in runs
    ]
