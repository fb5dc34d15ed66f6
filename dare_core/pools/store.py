"""Pool versions: immutable, named by their content, published by moving one pointer.

<root>/versions/<version>.json      manifests
<root>/segments/<sha256>            the files that manifests name; versions share those that did not change
<root>/CURRENT, pins/, .lock        the register of a pool without a warehouse
<root>/verified/<host>.json         which segments' bytes a host has checked
"""

import hashlib
import logging
from pathlib import Path

from dare_core.errors import PoolError
from dare_core.pools.files import DEFAULT_CACHE_BYTES, PoolFiles
from dare_core.pools.manifest import PoolManifest
from dare_core.pools.register import VERSION, FileRegister, Register
from dare_core.pools.segments import Segment, SegmentEntry
from dare_core.storage.files import DEFAULT_CACHE
from dare_core.storage.locations import Location

log = logging.getLogger(__name__)


class PoolStore:
    """The versions under one root. They are opened by a :class:`~dare_core.pools.reader.Pool`, made by a
    :class:`~dare_core.pools.builder.PoolBuilder`, and removed by :mod:`~dare_core.pools.retention`.

    Args:
        root: a folder, or a URL that fsspec knows.
        register: which version is in force; default: files beside the versions, or for object storage in the cache.
        cache: folder for what is read from object storage.
        cache_bytes: what it may hold.
    """

    def __init__(
        self,
        root: Location | str,
        register: Register | None = None,
        cache: Path = DEFAULT_CACHE,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.files = PoolFiles(str(root), cache, cache_bytes)
        #: The root as it was given, and the local folder that it is or that stands for it here.
        self.location, self.root = str(root), self.files.host_root
        self.register = register or FileRegister(self.root)

    # Versions

    def in_force(self) -> str | None:
        """The version in force; None before the first."""
        versions = self.register.versions()
        return versions[0] if versions else None

    def current(self) -> str:
        """The version in force.

        Raises:
            PoolError: there is no pool at this root.
        """
        if version := self.in_force():
            return version
        raise PoolError(f"there is no pool at {self.location}; build one with `dare pool build --out {self.location}`")

    def versions(self) -> list[str]:
        """The version in force, then those before it, the latest first."""
        return [version for version in self.register.versions() if self.has(version)]

    def version_before(self, version: str) -> str:
        """The version that was in force before another.

        Raises:
            PoolError: there is none.
        """
        versions = self.versions()
        if version in versions[:-1]:
            return versions[versions.index(version) + 1]
        raise PoolError(f"pool {self.location} has no version before {version}")

    def versions_before(self, version: str) -> list[str]:
        """Those before a version, the latest first; by their files' times where the register does not know it."""
        history = self.versions()
        if version not in history:
            written = self.files.names("versions")
            latest_first = sorted(written, key=lambda name: written[name], reverse=True)
            history = [name.removesuffix(".json") for name in latest_first if name.endswith(".json")]
        return history[history.index(version) + 1 :]

    def has(self, version: str) -> bool:
        """Whether a version's manifest is there."""
        return self.files.exists(manifest_path(version))

    def manifest(self, version: str | None = None) -> PoolManifest:
        """What a version (default: the one in force) holds.

        Raises:
            PoolError: the version is not there, or its manifest is damaged or from a newer release.
        """
        version = version or self.current()
        if not VERSION.fullmatch(version):
            raise PoolError(f"{version!r} is not a pool version; versions are 16 hex digits")
        path = manifest_path(version)
        try:
            return PoolManifest.of_json(self.files.read(path), version, f"{self.location}/{path}")
        except FileNotFoundError:
            raise PoolError(f"pool {self.location} has no version {version!r}") from None

    def pin(self, version: str, holder: str) -> None:
        """Keep a version from being expired until the holder is done."""
        self.manifest(version)
        self.register.pin(version, holder)

    def unpin(self, holder: str) -> None:
        """The holder is done with the version that it pinned."""
        self.register.unpin(holder)

    def segments_named_by(self, version: str) -> set[str]:
        """The segments that a version names; none where its manifest is gone or damaged."""
        try:
            return {entry.sha256 for entry in self.manifest(version).segments}
        except PoolError as error:
            log.warning("%s", error)
            return set()

    def files_of(self, version: str) -> list[str]:
        """The files that a version is made of, its manifest last, and what is noted beside it.

        Raises:
            PoolError: as :meth:`manifest`.
        """
        segments = dict.fromkeys(f"segments/{entry.sha256}" for entry in self.manifest(version).segments)
        beside = [name for name in (f"loaded/{version}",) if self.files.exists(name)]
        return [*segments, *beside, manifest_path(version)]

    # Segments

    def write_segment(self, segment: Segment) -> SegmentEntry:
        """Write a segment's file under the name of its content, unless it is there already, whole."""
        data = segment.to_bytes()
        entry = SegmentEntry(hashlib.sha256(data).hexdigest(), segment.texts, segment.tokens, len(data))
        name = f"segments/{entry.sha256}"
        if not (self.files.exists(name) and self._is_whole(entry)):
            self.files.write(name, data)
        return entry

    def segment(self, entry: SegmentEntry) -> Segment:
        """A segment that a manifest names, mapped into memory.

        Raises:
            PoolError: its file is missing or damaged.
        """
        return Segment.map(self.files.segment(entry))

    def check(self, manifest: PoolManifest, thoroughly: bool = False) -> None:
        """Check that a version's files are there and whole.

        Args:
            manifest: the version's.
            thoroughly: read bytes again that this host has checked before, and that nobody has written to since.

        Raises:
            PoolError: names the first file that is not.
        """
        try:
            for entry in manifest.segments:
                if thoroughly or not self.files.is_checked(entry):
                    self.files.segment(entry, anew=thoroughly)
        finally:
            self.files.note_checks()

    def _is_whole(self, entry: SegmentEntry) -> bool:
        try:
            self.files.segment(entry)
        except PoolError:
            return False
        return True


def manifest_path(version: str) -> str:
    """Where a version's manifest lies below the root."""
    return f"versions/{version}.json"
