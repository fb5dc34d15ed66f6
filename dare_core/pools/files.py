"""A pool store's files: segments are read from object storage through a bounded local cache, checked once a host."""

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from dare_core.errors import PoolError, StorageError
from dare_core.pools.segments import Segment, SegmentEntry
from dare_core.storage.atomic import appearing, write_atomically
from dare_core.storage.files import DEFAULT_CACHE, Files
from dare_core.storage.locations import fetched

DEFAULT_CACHE_BYTES: Final = 32 << 30
#: Copies that nobody has read for so long go when the next segment is fetched, however much room there is.
KEPT_UNREAD_SECONDS: Final = 14 * 24 * 3600
_CHUNK: Final = 1 << 20
#: Seconds after which the cache takes a segment's use for another one than the last.
_SAME_USE: Final = 3600


class PoolFiles(Files):
    """Files by their path below a root.

    What this host has checked is noted in one file, ``verified/<host>.json``: for each segment, what tells whether
    somebody has written to it since.

    Args:
        root: a folder, or a URL that fsspec knows.
        cache: folder for segments read from object storage; unused with a local root.
        cache_bytes: what the folder may hold. The longest unread go first.
    """

    def __init__(self, root: str, cache: Path = DEFAULT_CACHE, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        super().__init__(root, cache)
        self.cache, self.cache_bytes = cache, cache_bytes
        #: Where segments lie on this host.
        self._segments = f"{self.local or cache}/segments"
        self._notes = self.host_root / "verified" / f"{socket.gethostname()}.json"
        self._has_unnoted = False

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Files.write`.

        Raises:
            PoolError: in place of a StorageError.
        """
        try:
            super().write(name, data)
        except StorageError as error:
            raise PoolError(f"{error}; the version in force stays") from error

    def is_checked(self, entry: SegmentEntry) -> bool:
        """Whether a segment is here, and nobody has written to it since this host has checked its bytes."""
        path = f"{self._segments}/{entry.sha256}"
        try:
            status = os.stat(path)  # noqa: PTH116  of a thousand files, a Path each takes as long as the rest
        except OSError:
            return False
        if self.local is None and time.time() - status.st_atime > _SAME_USE:
            with contextlib.suppress(OSError):
                os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # read last now
        return self._checked.get(entry.sha256) == _seen(status, entry)

    def segment(self, entry: SegmentEntry, anew: bool = False) -> Path:
        """A segment as a local file whose bytes and header have been checked on this host, or are now.

        Args:
            entry: which.
            anew: check, or fetch, it again.

        Raises:
            PoolError: it is missing or damaged, or larger than the cache.
        """
        path = Path(self._segments, entry.sha256)
        if anew or not self.is_checked(entry):
            self._checked[entry.sha256] = self._verify(path, entry) if self.local else self._fetch(path, entry, anew)
            self._has_unnoted = True
        return path

    def note_checks(self) -> None:
        """Have other processes of this host, and later ones, know which segments were checked."""
        if self._has_unnoted:
            with contextlib.suppress(OSError):  # of a folder that may only be read, every process checks the bytes
                there = {path.name for path in Path(self._segments).iterdir()}
                known = _read(self._notes) | self._checked
                checked = {name: seen for name, seen in known.items() if name in there}
                write_atomically(self._notes, json.dumps(checked).encode(), durable=False)
            self._has_unnoted = False

    def copies(self, folder: str) -> dict[str, float]:
        """Files of the cache's folder, as :meth:`names`; none where the root is local. All roots share the cache."""
        if self.local:
            return {}
        return {path.name: path.stat().st_mtime for path in (self.cache / folder).glob("*") if path.is_file()}

    @contextlib.contextmanager
    def as_local(self, name: str) -> Iterator[Path]:
        """A file of the root, or else of the cache, as a local one for the time of a block.

        Raises:
            StorageError: the store cannot be reached.
        """
        if self.local or not self.exists(name):
            yield (self.local or self.cache) / name
            return
        with fetched(self._root / name) as copy:
            yield copy

    def remove_copies(self, names: Collection[str]) -> None:
        """Remove what this host, and others that share the folder, keep of files: copies and notes of checks."""
        if self.local is None:
            for name in names:
                (self.cache / name).unlink(missing_ok=True)
        gone = {Path(name).name for name in names}
        for notes in self._notes.parent.glob("*.json"):
            checked = _read(notes)
            if not gone.isdisjoint(checked):
                left = {name: seen for name, seen in checked.items() if name not in gone}
                write_atomically(notes, json.dumps(left).encode(), durable=False)

    @cached_property
    def _checked(self) -> dict[str, Any]:
        return _read(self._notes)

    def _verify(self, path: Path, entry: SegmentEntry) -> list[int]:
        """Check a segment's bytes and header; what tells whether it is written to hereafter."""
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size != entry.size:
                    raise PoolError(f"{path} is damaged: it has {status.st_size} bytes instead of {entry.size}")
                digest = hashlib.sha256()
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except FileNotFoundError:
            raise PoolError(f"{path} is missing") from None
        except OSError as error:
            raise PoolError(f"{path} cannot be read: {error}") from None
        if digest.hexdigest() != entry.sha256:
            raise PoolError(f"{path} is damaged: its checksum is wrong")
        segment = Segment.map(path)
        if (segment.texts, segment.tokens) != (entry.texts, entry.tokens):
            raise PoolError(
                f"{path} holds {segment.texts} texts and {segment.tokens} tokens, not {entry.texts} and {entry.tokens} "
                "as the version says"
            )
        return _seen(status, entry)

    def _fetch(self, path: Path, entry: SegmentEntry, anew: bool) -> list[int]:
        """As :meth:`_verify`, of a copy in the cache, which is made where there is no whole one."""
        if not anew:
            with contextlib.suppress(PoolError):
                return self._verify(path, entry)
        if entry.size > self.cache_bytes:
            raise PoolError(f"segment {entry.sha256} has {entry.size} bytes, more than the cache {self.cache} may hold")
        self._make_room(entry.size)
        digest = hashlib.sha256()
        try:
            with (
                self.reading(f"segments/{entry.sha256}") as file,
                appearing(path, durable=True) as scratch,
                scratch.open("wb") as copy,
            ):
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
                if digest.hexdigest() != entry.sha256:
                    raise PoolError(f"{self._root}/segments/{entry.sha256} is damaged: its checksum is wrong")
        except FileNotFoundError:
            raise PoolError(f"{self._root}/segments/{entry.sha256} is missing") from None
        return self._verify(path, entry)

    def _make_room(self, size: int) -> None:
        """Remove copies until another one fits, the longest unread first; and those that nobody reads any more.

        The latter may be of texts that were forgotten: no version names them, but this host cannot know it. A file that
        a process has mapped stays readable for it.
        """
        files = list[tuple[int, int, Path]]()
        for path in Path(self._segments).glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process has made room
                files.append(((status := path.stat()).st_atime_ns, status.st_size, path))
        held = sum(size for _, size, _ in files)
        for read, freed, path in sorted(files):
            if held + size <= self.cache_bytes and time.time() - read / 1e9 < KEPT_UNREAD_SECONDS:
                break
            path.unlink(missing_ok=True)
            held -= freed


def _seen(status: os.stat_result, entry: SegmentEntry) -> list[int]:
    """What a check of a segment was of: which file, as somebody wrote it last, and what it was to hold."""
    return [status.st_ino, status.st_mtime_ns, status.st_size, entry.size, entry.texts, entry.tokens]


def _read(notes: Path) -> dict[str, Any]:
    """Segments by name, with what was seen of them; none where that cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        checked = json.loads(notes.read_bytes())
        if isinstance(checked, dict):
            return checked
    return {}
