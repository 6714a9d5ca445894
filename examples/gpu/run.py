"""Runs every job of jobs.py that has no results file yet, and writes the tables.

    python run.py --data folder          # or: make gpu DATA=folder
    python run.py --tiny                 # everything once in a tiny form, on a CPU

A job runs in a forked process, so that imports are paid for once; the parent never touches the GPU.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from jobs import JOBS, Job
from tables import main as write_tables


HERE = Path(__file__).resolve().parent
LIMIT = 480.0  # seconds of a job
OVER = "the time was over"
FORK: Any = multiprocessing.get_context("fork")
# What takes seconds to import, here once and not in each job; the last three may be absent.
IMPORTS = (
    *("torch._dynamo", "peft", "oialr_peft.training.callback", "oialr_peft.export.save"),
    *("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"),
    *("datasets", "evaluate", "pandas"),
)


def main() -> None:
    """Runs what is missing; ends with code 1 if a job failed."""
    parsed = _arguments()
    results: Path = parsed.results
    results.mkdir(parents=True, exist_ok=True)
    gpus = 0 if parsed.tiny else _gpus()
    if not gpus and not parsed.tiny:
        print("No GPU here: nothing was measured, and the tables go on saying so. `--tiny` tries all jobs on a CPU.")
        return
    for name in IMPORTS:
        if importlib.util.find_spec(name.split(".")[0]):
            importlib.import_module(name)
    deadline, failed = time.monotonic() + 60 * parsed.minutes, []
    missing = [job for job in JOBS if parsed.only in job.name and not (results / f"{job.name}.json").exists()]
    at_once = os.cpu_count() or 1 if parsed.tiny else 1  # side by side they would disturb each other's times
    for start in range(0, len(missing), at_once):
        runs = [Run(job, parsed, gpus) for job in missing[start : start + at_once]]
        for run in runs:
            reason = run.wait(min(LIMIT, deadline - time.monotonic()))
            if reason == OVER and time.monotonic() > deadline:
                break
            _note(results, run.job, reason)
            failed += [run.job.name] if reason else []
        if time.monotonic() > deadline:
            print("The minutes are over; the next run goes on from here.")
            break
    if not parsed.tiny:
        write_tables()
    if failed:
        raise SystemExit(f"{len(failed)} jobs without a result: {', '.join(failed)}. Logs are in {results / 'logs'}.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = HERE.parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--only", default="", help="run only the jobs that have this in their name")
    parser.add_argument("--minutes", type=float, default=1e6, help="start and leave no job running after these")
    parser.add_argument("--commit", default=None, help="of the code, where there is no git")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, seconds per job; for tests")
    return parser.parse_args()


def _gpus() -> int:
    """The number of GPUs, asked for in a child: a process that has touched CUDA cannot be forked."""
    with FORK.Pool(1) as pool:
        return pool.apply(torch.cuda.device_count)


def _obstacle(job: Job, parsed: argparse.Namespace, gpus: int) -> str | None:
    """Why a job cannot run here, in words."""
    for module in job.modules:
        if importlib.util.find_spec(module) is None:
            return f"the package {module} is not installed"
    if parsed.tiny:
        return None
    if gpus < job.gpus:
        return f"{job.gpus} GPUs are needed, {gpus} found"
    missing = [name for name in job.files if not (parsed.data / name).exists()]
    return f"{missing[0]} is not in the data folder" if missing else None


class Run:
    """A job in a process of its own."""

    def __init__(self, job: Job, parsed: argparse.Namespace, gpus: int) -> None:
        self.job, self.parsed = job, parsed
        self.obstacle = _obstacle(job, parsed, gpus)
        if self.obstacle:
            return
        self.work = tempfile.TemporaryDirectory()
        work = self.work.name
        self.places = {"work": work, "output": f"{work}/result.json", "data": str(parsed.data.resolve())}
        self.places["device"] = "cpu" if parsed.tiny else "cuda"
        self.log: Path = parsed.results / "logs" / f"{job.name}.txt"
        self.log.parent.mkdir(exist_ok=True)
        self.began = time.monotonic()
        self.process = FORK.Process(target=_child, args=(job, job.arguments(parsed.tiny, self.places), self.log))
        self.process.start()

    def wait(self, limit: float) -> str | None:
        """Keeps the job's result; returns what went wrong, in words."""
        if self.obstacle:
            return self.obstacle
        with self.work:
            self.process.join(max(0, limit))
            if self.process.is_alive():
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.join()
                return OVER
            result = Path(self.job.result.format(**self.places))
            if self.process.exitcode or not result.exists():
                return (self.log.read_text().strip() or "no output").splitlines()[-1][:200]
            self._keep(json.loads(result.read_text()))
        return None

    def _keep(self, found: dict[str, Any]) -> None:
        seconds, commit = time.monotonic() - self.began, self.parsed.commit or _commit()
        text = json.dumps(found)
        for name in ("work", "data"):  # results are published: no paths of a machine
            text = text.replace(self.places[name], name)
        found = json.loads(text)
        facts = {"job": self.job.name, "commit": commit, "tiny": self.parsed.tiny, "seconds": seconds}
        target = self.parsed.results / f"{self.job.name}.json"
        target.with_suffix(".draft").write_text(json.dumps({**facts, **found}, indent=1) + "\n")
        target.with_suffix(".draft").replace(target)
        print(f"{self.job.name}: {seconds:.0f} s", flush=True)


def _child(job: Job, arguments: list[str], log: Path) -> None:
    """The script as `python script arguments` runs it, in a process group of its own."""
    os.setsid()
    with log.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    script = HERE.parent / job.script
    os.chdir(script.parent)
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.parent)
    for name in ("jobs", "tables", "run"):  # other examples have files of these names
        sys.modules.pop(name, None)
    runpy.run_path(str(script), run_name="__main__")


def _note(results: Path, job: Job, reason: str | None) -> None:
    """Keeps why a job has no result, for its row in the tables."""
    path = results / "not_measured.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known = {name: words for name, words in known.items() if name != job.name}
    if reason:
        print(f"{job.name}: {reason}", flush=True)
        known[job.name] = reason
    path.write_text(json.dumps(known, indent=1) + "\n")


def _commit() -> str:
    """The commit of the code, marked where files differ from it."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    described = subprocess.run(git, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
