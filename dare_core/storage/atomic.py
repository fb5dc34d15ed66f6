"""Files, and local folders, that appear under their names when they are whole, or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

from dare_core.errors import StorageError
from dare_core.storage.locations import Location, put

#: How what is being written is called until it is whole. Whoever is killed meanwhile leaves it.
_SCRATCH: Final = ".writing-"


def is_scratch(name: str) -> bool:
    """Whether this is the name of something that is being written, or never was finished."""
    return name.startswith(_SCRATCH) or (name.startswith(".") and ".parquet-" in name)  # the latter up to 0.1.0


def scratch_name(path: Path) -> Path:
    """A name beside a path that nobody takes for something whole."""
    return path.with_name(f"{_SCRATCH}{uuid4().hex}")


@contextmanager
def appearing(path: Location, durable: bool = False) -> Iterator[Path]:
    """A local name to write a file or a folder under; when the block ends well, it is there as ``path``.

    A file takes the place of one that is there. A folder does not, and is local.

    Args:
        path: its name in the end; the folder that it lies in is made.
        durable: a file is there after a crash of the machine too.

    Raises:
        OSError: it cannot be written, or there is such a folder by now; nothing is left of it.
        StorageError: likewise, of a remote path.
    """
    if not isinstance(path, Path):
        with TemporaryDirectory(prefix="dare-") as folder:
            yield (copy := Path(folder) / path.name)
            put(copy, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_name(path)
    try:
        yield scratch
        if durable:
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
        scratch.rename(path)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Nobody else is in a block of the same lock file meanwhile; it is made, and the folder that it lies in."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it locked while a forked child lives


def require_writable(path: Path) -> None:
    """Check, before anything slow, that a file can be written under a name; what is there stays as it is.

    Raises:
        StorageError: it cannot; says why.
    """
    if not path.parent.is_dir():
        raise StorageError(f"{path}: its folder does not exist")
    if path.is_dir():
        raise StorageError(f"{path} is a folder; name a file")
    scratch = scratch_name(path)
    try:
        scratch.touch()
        scratch.unlink()
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from None


def write_atomically(path: Location, data: bytes, durable: bool = True) -> None:
    """Write a file as :func:`appearing` does."""
    with appearing(path, durable) as scratch, scratch.open("wb") as file:
        file.write(data)


@contextmanager
def storing(path: Location) -> Iterator[None]:
    """Word what goes wrong while a file of a run is written.

    Raises:
        StorageError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {os.strerror(error.errno) if error.errno else error}; nothing is left of it. "
            f"Make room there and run the same again: it goes on where it was"
        ) from error
