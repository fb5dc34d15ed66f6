"""Files on a local folder or on object storage (fsspec), by their path below a root."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dare_core.errors import SettingError, StorageError
from dare_core.storage.atomic import appearing, write_atomically

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

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        """A file to read in parts.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._fs.open(f"{self._root}/{name}", "rb") as file:
            yield file

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write in parts; it appears under its name when the block ends well.

        Raises:
            StorageError: as :meth:`write`.
        """
        try:
            if self.local:
                with appearing(self.local / name, durable=True) as scratch, scratch.open("wb") as file:
                    yield file
            else:
                with self._fs.open(f"{self._root}/{name}", "wb") as file:
                    yield file
        except OSError as error:
            raise StorageError(f"{self._root}/{name} cannot be written: {error.strerror or error}") from error

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


def _written(item: dict[str, Any]) -> float:
    at = next((item[key] for key in ("mtime", "LastModified", "created", "last_modified") if key in item), 0.0)
    return float(at.timestamp() if hasattr(at, "timestamp") else at)
