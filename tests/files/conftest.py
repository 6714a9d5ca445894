"""A small filesystem of its own, where this machine lets us mount one."""

import contextlib
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def mounted(tmp_path):
    """mounted(kilobytes): an empty folder on a tmpfs of that size; skips where nothing can be mounted."""
    folders: list[Path] = []

    def mount(kilobytes: int, read_only: bool = False) -> Path:
        folder = tmp_path / f"mount-{len(folders)}"
        folder.mkdir()
        options = f"size={kilobytes}k{',ro' if read_only else ''}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True)
        except FileNotFoundError:
            done = None
        if done is None or done.returncode:
            pytest.skip("not run: mounting a filesystem takes root's rights")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["umount", "-l", str(folder)], check=True)
