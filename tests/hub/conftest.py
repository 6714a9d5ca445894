"""A Hub on loopback and processes that know no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .server import running_hub


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def hub():
    with running_hub() as hub:
        hub.faults = {
            "PUT /lfs/me/no-upload": 500,
            "POST /api/models/me/no-commit/commit": 500,
            "POST /api/models/me/no-connection/commit": "close",
        }
        yield hub


@pytest.fixture(scope="session")
def pushed(hub, run_jobs, tmp_path_factory):
    """All that is pushed, in one process: (its folder, what the jobs returned)."""
    folder = tmp_path_factory.mktemp("pushed")
    return folder, run_jobs(
        folder, "push", "push_compressed_over_an_adapter", "push_over_an_edited_readme", "trainer", "fail"
    )


@pytest.fixture(scope="session")
def run_jobs(hub, tmp_path_factory):
    """run_jobs(folder, *names): jobs of jobs.py in a fresh process with an empty HF_HOME; {name: what it returned}."""

    def run(folder: Path, *names: str) -> dict:
        outer = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_TOKEN": "hf_of_these_tests",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.hub.jobs", str(folder), *names]
        done = subprocess.run(command, cwd=ROOT, env={**outer, **settings}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
