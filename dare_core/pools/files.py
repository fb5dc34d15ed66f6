"""A pool store's files: on a local folder, or on object storage (fsspec) read through a bounded local cache."""

import contextlib
import hashlib
import os
import socket
import tempfile
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dare_core.errors import PoolError
from dare_core.pools.segments import SegmentEntry

#: Where files read from object storage are kept when nobody says where.
DEFAULT_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dare" / "pools"
DEFAULT_CACHE_BYTES: Final = 32 << 30
_CHUNK: Final = 1 << 20


class PoolFiles:
    """Files by their path below a root. A file is there whole or not at all.

    Args:
        root: a folder, or a URL that fsspec knows.
        cache: folder for segments read from object storage; unused with a local root.
        cache_bytes: what the folder may hold. The longest unread go first.
    """

    def __init__(self, root: str, cache: Path = DEFAULT_CACHE, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._fs, path = fsspec.core.url_to_fs(root)
        self._root = path.rstrip("/")
        self._cache_bytes = cache_bytes
        # Any file system object that writes to local folders is one, wrapped or not.
        self.local = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
        self._cache = cache
        #: Where this host keeps what is its own: the folder itself, or what stands for the URL in the cache.
        self.host_root = self.local or cache / hashlib.sha256(root.encode()).hexdigest()[:16]

    def write(self, name: str, data: bytes) -> None:
        """Write a file; it appears under its name when it is whole.

        Raises:
            PoolError: it cannot be written, as when the disk is full; nothing is left of it.
        """
        try:
            if self.local:
                write_atomically(self.local / name, data)
            else:
                self._fs.pipe_file(f"{self._root}/{name}", data)  # object stores show an object when it is whole
        except OSError as error:
            raise PoolError(
                f"{self._root}/{name} cannot be written: {error.strerror or error}; the version in force stays"
            ) from error

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
