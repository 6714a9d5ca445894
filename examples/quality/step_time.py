"""The time of a step at 25 % with a basis that moves, beside the dense one, in alternation, as JSON.

python step_time.py --data DATA --output results/step_time.json
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import median

import torch
from methods import Settings, dense, oialr
from run import steps, task_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare/")
    parser.add_argument("--size", default="wide")
    parser.add_argument("--rank", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path, required=True)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    task, found = task_of("characters", parsed.data, parsed.size, "cpu"), {}
    for optimizer, rate in (("muon", 0.02), ("adamw", 0.004)):
        settings = Settings(rate, parsed.rank, parsed.rounds + 2, optimizer)
        kinds = (dense, partial(oialr, bases="longer", update_interval=1000))  # factors from the start, no update
        both = zip(*(steps(kind(task.model(), settings), task, settings, 0) for kind in kinds), strict=True)
        rounds = [(slow, fast) for (_, _, slow), (_, _, fast) in list(both)[2:]]
        found[optimizer] = {"rounds": rounds, "ratio": median(fast / slow for slow, fast in rounds)}
        print(optimizer, found[optimizer]["ratio"], flush=True)
    facts = {"size": parsed.size, "rank": parsed.rank, "optimizers": found}
    parsed.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
