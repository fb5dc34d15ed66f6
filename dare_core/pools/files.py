"""A pool store's files: segments are read from object storage through a bounded local cache, checked once a host."""

import contextlib
import hashlib
import os
import socket
from pathlib import Path
from typing import Final

from dare_core.errors import PoolError
from dare_core.pools.segments import SegmentEntry
from dare_core.storage.files import DEFAULT_CACHE, Files, write_atomically

DEFAULT_CACHE_BYTES: Final = 32 << 30
_CHUNK: Final = 1 << 20


class PoolFiles(Files):
    """Files by their path below a root.

    Args:
        root: a folder, or a URL that fsspec knows.
        cache: folder for segments read from object storage; unused with a local root.
        cache_bytes: what the folder may hold. The longest unread go first.
    """

    def __init__(self, root: str, cache: Path = DEFAULT_CACHE, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        super().__init__(root, cache)
        self._cache_bytes = cache_bytes

    def segment(self, entry: SegmentEntry, anew: bool = False) -> Path:
        """A segment as a local file whose bytes have been checked on this host, or are now.

        Args:
            entry: which.
            anew: check, or fetch, it again.

        Raises:
            PoolError: it is missing or damaged, or larger than the cache.
        """
        if self.local:
            path = self.local / "segments" / entry.sha256
            self._verify_once(path, entry, anew)
            return path
        path = self._cache / "segments" / entry.sha256
        if not anew and path.exists() and path.stat().st_size == entry.size:
            os.utime(path)  # read last now
            return path
        if entry.size > self._cache_bytes:
            raise PoolError(
                f"segment {entry.sha256} has {entry.size} bytes, more than the cache {self._cache} may hold"
            )
        try:
            data = self.read(f"segments/{entry.sha256}")
        except FileNotFoundError:
            raise PoolError(f"{self._root}/segments/{entry.sha256} is missing") from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise PoolError(f"{self._root}/segments/{entry.sha256} is damaged: its checksum is wrong")
        self._make_room(entry.size)
        write_atomically(path, data)
        return path

    def copies(self, folder: str) -> dict[str, float]:
        """Files of the cache's folder, as :meth:`names`; none where the root is local. All roots share the cache."""
        if self.local:
            return {}
        return {path.name: path.stat().st_mtime for path in (self._cache / folder).glob("*") if path.is_file()}

    def read_copy(self, name: str) -> bytes:
        """The bytes of a file of the cache.

        Raises:
            FileNotFoundError: there is none.
        """
        return (self._cache / name).read_bytes()

    def remove_copies(self, name: str) -> None:
        """Remove what this host, and others that share the folder, keep of a file: copies and notes of checks."""
        if self.local is None:
            (self._cache / name).unlink(missing_ok=True)
        for stamp in (self.local or self.host_root).glob(f"verified/*/{Path(name).name}"):
            stamp.unlink(missing_ok=True)

    def _verify_once(self, path: Path, entry: SegmentEntry, anew: bool) -> None:
        """Check a segment's bytes unless this host has, and nobody has written to the file since."""
        try:
            status = path.stat()
        except FileNotFoundError:
            raise PoolError(f"{path} is missing") from None
        if status.st_size != entry.size:
            raise PoolError(f"{path} is damaged: it has {status.st_size} bytes instead of {entry.size}")
        assert self.local is not None
        seen = f"{status.st_ino} {status.st_mtime_ns}"
        stamp = self.local / "verified" / socket.gethostname() / entry.sha256
        with contextlib.suppress(OSError):
            if not anew and stamp.read_text() == seen:
                return
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != entry.sha256:
            raise PoolError(f"{path} is damaged: its checksum is wrong")
        with contextlib.suppress(OSError):  # of a folder that may only be read, every open checks the bytes
            write_atomically(stamp, seen.encode(), durable=False)

    def _make_room(self, size: int) -> None:
        # A file that a process has mapped stays readable for it after it is removed here.
        with contextlib.suppress(FileNotFoundError):
            files = sorted((self._cache / "segments").iterdir(), key=lambda path: path.stat().st_mtime)
            held = sum(path.stat().st_size for path in files)
            for path in files:
                if held + size <= self._cache_bytes:
                    break
                held -= path.stat().st_size
                path.unlink()
