"""Files on a local folder or on object storage (fsspec), by their path below a root."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from dare_core.errors import StorageError
from dare_core.storage.atomic import appearing
from dare_core.storage.locations import exists, fetched, files_in, location, read_bytes, remove

#: Where a host keeps what belongs to a root on object storage, when nobody says where.
DEFAULT_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dare" / "pools"


class Files:
    """Files by their path below a root. A file is there whole or not at all.

    Args:
        root: a folder, or a URL that fsspec knows.
        cache: folder for what this host keeps of a root on object storage.

    Raises:
        SettingError: see :func:`~dare_core.storage.locations.location`.
    """

    def __init__(self, root: str, cache: Path = DEFAULT_CACHE) -> None:
        self._root = location(root.rstrip("/") or root)
        #: The root as it was given.
        self.location = root
        self.local = self._root if isinstance(self._root, Path) else None
        self._cache = cache
        #: Where this host keeps what is its own: the folder itself, or what stands for the URL in the cache.
        self.host_root = self.local or cache / hashlib.sha256(root.encode()).hexdigest()[:16]

    def write(self, name: str, data: bytes) -> None:
        """Write a file; it appears under its name when it is whole.

        Raises:
            StorageError: it cannot be written, as when the disk is full; nothing is left of it.
        """
        with self.writing(name) as file:
            file.write(data)

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the store cannot be reached.
        """
        return read_bytes(self._root / name)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        """A file to read in parts.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the store cannot be reached.
        """
        with fetched(self._root / name) as local, local.open("rb") as file:
            yield file

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write in parts; it appears under its name when the block ends well.

        Raises:
            StorageError: as :meth:`write`.
        """
        path = self._root / name
        try:
            with appearing(path, durable=True) as scratch, scratch.open("wb") as file:
                yield file
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return exists(self._root / name)

    def names(self, folder: str) -> dict[str, float]:
        """The files of a folder, and when each was last written, in seconds since 1970."""
        return {file.path.name: file.written for file in files_in(self._root / folder)}

    def remove(self, name: str) -> None:
        """Remove a file; that it is gone already is fine."""
        remove(self._root / name)
