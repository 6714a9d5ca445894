"""Starts the workers of this folder under torchrun, and ends them."""

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist


ROOT = Path(__file__).parents[2]


def torchrun(processes: int, worker: str, *args: object, fails: bool = False, timeout: int = 280) -> str:
    """Run a worker on so many processes and return what it printed; it must end as `fails` says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += [f"--master_port={port}", "-m", f"tests.workers.{worker}", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=timeout, text=True, capture_output=True, check=False
    )
    output = done.stdout + done.stderr
    assert bool(done.returncode) == fails, output[-6000:]
    return output


def tell_outcomes(scenes: Iterable[Callable[[], dict]]) -> None:
    """Print as a worker's results what every process returned in each scene, or raised; all must come to its end."""
    everything = {}
    for scene in scenes:
        try:
            outcome = scene()
        except Exception as error:
            outcome = {"error": str(error)}
        everything[scene.__name__] = [{}] * dist.get_world_size()
        dist.all_gather_object(everything[scene.__name__], outcome)
    if dist.get_rank() == 0:
        print("RESULTS " + json.dumps(everything), flush=True)


def results(output: str) -> Any:
    """What a worker's process 0 printed as its results."""
    line = next(line for line in output.splitlines() if line.startswith("RESULTS "))
    return json.loads(line.removeprefix("RESULTS "))


def leave() -> None:
    """End a worker, outside the function that holds its models: reducers go before their group, or gloo now and then
    hangs or aborts at exit."""
    gc.collect()
    dist.destroy_process_group()
