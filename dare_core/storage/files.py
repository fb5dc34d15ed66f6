"""Files on a local folder or on object storage (fsspec), by their path below a root."""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dare_core.errors import SettingError, StorageError

#: Where a host keeps what belongs to a root on object storage, when nobody says where.
DEFAULT_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dare" / "pools"

#: A URL with a password, up to its end.
_PASSWORD: Final = re.compile(r"([a-z0-9+]+://)[^/@]*:.*@")


class Files:
    """Files by their path below a root. A file is there whole or not at all.

    Args:
        root: a folder, or a URL that fsspec knows.
        cache: folder for what this host keeps of a root on object storage.

    Raises:
        SettingError: the URL holds a password, which would stand in errors, on command lines and in the warehouse.
    """

    def __init__(self, root: str, cache: Path = DEFAULT_CACHE) -> None:
        if _PASSWORD.match(root):
            shown = _PASSWORD.sub(r"\1…@", root)
            raise SettingError(
                f"the URL {shown} holds a password; leave it out, and give it by environment variables of the "
                "storage's own, or fsspec's configuration"
            )
        self._fs, path = fsspec.core.url_to_fs(root)
        #: The root as it was given.
        self.location = root
        self._root = path.rstrip("/")
        # Any file system object that writes to local folders is one, wrapped or not.
        self.local = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
        self._cache = cache
        #: Where this host keeps what is its own: the folder itself, or what stands for the URL in the cache.
        self.host_root = self.local or cache / hashlib.sha256(root.encode()).hexdigest()[:16]

    def write(self, name: str, data: bytes) -> None:
        """Write a file; it appears under its name when it is whole.

        Raises:
            StorageError: it cannot be written, as when the disk is full; nothing is left of it.
        """
        try:
            if self.local:
                write_atomically(self.local / name, data)
            else:
                self._fs.pipe_file(f"{self._root}/{name}", data)  # object stores show an object when it is whole
        except OSError as error:
            raise StorageError(f"{self._root}/{name} cannot be written: {error.strerror or error}") from error

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is none.
        """
        data: bytes = self._fs.cat_file(f"{self._root}/{name}")
        return data

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._fs.exists(f"{self._root}/{name}"))

    def names(self, folder: str) -> dict[str, float]:
        """The files of a folder, and when each was last written, in seconds since 1970."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            listed = self._fs.ls(f"{self._root}/{folder}", detail=True)
            return {Path(item["name"]).name: _written(item) for item in listed if item["type"] == "file"}
        return {}

    def remove(self, name: str) -> None:
        """Remove a file; that it is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
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


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a local file that is there whole or not at all, after a crash of the machine too where ``durable``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _written(item: dict[str, Any]) -> float:
    at = next((item[key] for key in ("mtime", "LastModified", "created", "last_modified") if key in item), 0.0)
    return float(at.timestamp() if hasattr(at, "timestamp") else at)
