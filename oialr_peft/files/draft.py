"""A draft beside the files it will replace: what is written there is made durable and then renamed into place."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError

from .tensors_file import read_header


try:
    import fcntl
except ImportError:  # Windows: leftovers are told by their age alone
    fcntl = None  # type: ignore[assignment]

_PREFIX = ".oialr-draft-"
_SHELF = "oialr-weights-"
SHELF = rf"{_SHELF}[0-9a-f]{{8}}"
_ON_A_SHELF = re.compile(r".+\.safetensors(\.index\.json)?")
_OLD = 24 * 3600  # seconds; nobody writes that long without touching the draft


def is_draft(path: str | os.PathLike) -> bool:
    """Whether a path lies in a draft."""
    return any(part.startswith(_PREFIX) for part in Path(path).parts)


def is_shelf(path: Path) -> bool:
    """Whether a path is a shelf of ours, by its name and by what it holds: weights and nothing else."""
    if not re.fullmatch(SHELF, path.name) or path.is_symlink() or not path.is_dir():
        return False
    return all(_ON_A_SHELF.fullmatch(file.name) and not file.is_dir() for file in path.iterdir())


def replace_file(path: str | os.PathLike, data: bytes) -> None:
    """Write a file whole or not at all. A link is replaced, not written through; a device or pipe is written to."""
    path = Path(path)
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with Draft(path.parent) as draft:
        (draft.path / path.name).write_bytes(data)
        draft.place(path.name)


class Draft:
    """A hidden folder inside the target folder, so on the same filesystem, that is gone after the `with` block.

    ```python
    with Draft(folder) as draft:
        write(draft.path / "model.safetensors")
        draft.prove()
        draft.place("model.safetensors")  # one rename; from here on the folder holds the new file
    ```

    A process that is killed leaves its draft behind; the next draft in the same folder removes it. Drafts that a
    living process still writes are told by their lock. A shelf is a folder for weights that goes into the target
    before the file that names it; the next draft removes it unless `config.json` names it.

    Attributes:
        target: the folder that is written to, links resolved; made if absent.
        path: the draft.
        switched: whether a file was placed already. Until then the target holds what it held before.

    Raises:
        OSError: the target cannot be made or written to, or the disk is full; the message says what it holds now.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.target = Path(os.path.realpath(folder))
        self.path = self._path()
        self.switched = False
        self._lock: int | None = None

    def __enter__(self) -> Draft:
        try:
            self.target.mkdir(parents=True, exist_ok=True)
            self._make()
        except OSError as error:
            self._remove()
            raise type(error)(
                error.errno,
                f"nothing can be written there ({error.strerror}), so nothing was saved and nothing is lost. Give a "
                "folder that is yours to write, on a disk with room",
                str(self.target),
            ) from error
        remove_left_overs(self.target, self.path)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()
        if isinstance(error, (OSError, SafetensorError)) and not self.switched:
            why = getattr(error, "strerror", None) or str(error)
            number = getattr(error, "errno", None) or (errno.ENOSPC if "No space" in why else errno.EIO)
            what = f"{why}: nothing was saved, and the folder still holds what it held before"
            raise OSError(number, what, str(self.target)) from error

    def _make(self) -> None:
        """Make the draft and lock it; anew where another process took it for a leftover before it was locked."""
        while self._lock is None:
            self.path.mkdir()
            with suppress(FileNotFoundError):
                self._lock = _lock(self.path)
            if self.path.exists():
                return
            _unlock(self._lock)
            self._lock, self.path = None, self._path()

    def _path(self) -> Path:
        return self.target / f"{_PREFIX}{uuid.uuid4().hex[:8]}"

    def prove(self) -> None:
        """Read back what was written, as far as that tells a whole file from a part, and make it durable.

        Raises:
            ValueError: naming the file.
        """
        for file in sorted(self.path.rglob("*")):
            if file.is_file():
                if file.suffix == ".json":
                    json.loads(file.read_bytes())
                elif file.suffix == ".safetensors":
                    read_header(file)
                _sync(file)

    def files(self) -> list[str]:
        """Names, relative to the draft, of all that was written."""
        found = (file.relative_to(self.path) for file in sorted(self.path.rglob("*")) if file.is_file())
        return [str(name) for name in found]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While several files take the place of others: no other process does the same in this folder."""
        lock = _lock(self.target)
        try:
            yield
        finally:
            _unlock(lock)

    def shelf(self) -> str:
        """Make a folder for weights in the draft; its name."""
        name = f"{_SHELF}{uuid.uuid4().hex[:8]}"
        (self.path / name).mkdir()
        return name

    def drop(self, shelf: str) -> None:
        """Remove a shelf of the target, unless the target's `config.json` names it."""
        _drop(self.target / shelf)

    def place(self, name: str) -> None:
        """Rename one file or shelf of the draft into the target, where it takes the place of what has its name."""
        source, destination = self.path / name, self.target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        _sync(source)
        os.replace(source, destination)
        self.switched |= not re.fullmatch(SHELF, name)
        _sync(destination.parent)

    def _remove(self) -> None:
        _unlock(self._lock)
        self._lock = None
        shutil.rmtree(self.path, ignore_errors=True)


def remove_left_overs(folder: Path, but: Path | None = None) -> None:
    """Remove the drafts of killed processes, except `but`, and shelves that nothing names."""
    for draft in folder.glob(f"{_PREFIX}*"):
        if draft != but:
            _remove_left_over(draft)
    if shelves := [path for path in folder.glob(f"{_SHELF}*") if is_shelf(path)]:
        lock = _lock(folder)
        for shelf in shelves:
            _drop(shelf)
        _unlock(lock)


def _drop(shelf: Path) -> None:
    config = shelf.with_name("config.json")
    if not config.exists() or shelf.name.encode() not in config.read_bytes():
        shutil.rmtree(shelf, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """A lock that ends with the process, held once this returns; none where the filesystem has no locks."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _sync(path: Path) -> None:
    """Have the disk hold it. Not every filesystem can for folders; renames keep their order without it."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_left_over(draft: Path) -> None:
    """Remove a draft whose process is gone: nobody holds its lock, or it is old where there are no locks."""
    with suppress(FileNotFoundError):
        if fcntl is None:
            _remove_old(draft)
            return
        handle = os.open(draft, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(draft, ignore_errors=True)  # while it is locked: who has just made it waits for the lock
        except BlockingIOError:
            pass
        except OSError:
            _remove_old(draft)
        finally:
            os.close(handle)


def _remove_old(draft: Path) -> None:
    if time.time() - draft.stat().st_mtime > _OLD:
        shutil.rmtree(draft, ignore_errors=True)
