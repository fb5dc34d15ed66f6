"""Which versions and texts a pool keeps: earlier versions expire, entities are forgotten."""

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dare_core.errors import PoolError
from dare_core.pools.builder import PoolBuilder
from dare_core.pools.manifest import PoolManifest
from dare_core.pools.register import VERSION
from dare_core.pools.segments import Segment, SegmentEntry, entity_hash, text_hash
from dare_core.pools.store import PoolStore, manifest_path
from dare_core.storage.atomic import is_scratch

log = logging.getLogger(__name__)

#: A file that no version names is removed when it is older: a builder at work may be about to name it.
_GRACE_SECONDS: Final = 24 * 3600


class Whose(NamedTuple):
    """What stands for entities, and for texts of nobody knows whom, in a segment's rows."""

    entities: NDArray[np.uint64]
    texts: NDArray[np.uint64]

    @classmethod
    def of(cls, entities: Iterable[str], texts: Iterable[Sequence[int]] = ()) -> "Whose":
        """Of ids, and of token ids."""
        return cls(
            np.array([entity_hash(entity) for entity in entities], np.uint64),
            np.array([text_hash(token_ids) for token_ids in texts], np.uint64),
        )

    def are_in(self, segment: Path) -> bool:
        """Whether a segment's file holds a text of theirs, or cannot be read."""
        try:
            return not Segment.map(segment).without(*self).all()
        except PoolError:
            return True


def rollback(store: PoolStore, version: str | None = None) -> PoolManifest:
    """Put an older version (default: the one before) in force again.

    Raises:
        PoolError: there is no such version, or it is damaged.
    """
    current = store.current()
    manifest = store.manifest(version or store.version_before(current))
    store.check(manifest)
    store.register.publish(manifest, current)
    return manifest


def expire(store: PoolStore, keep: int) -> list[str]:
    """Remove all but the latest ``keep`` versions and those that are pinned, and the files that none of them names.

    While a backup copies the versions, nothing is removed.

    Returns:
        The versions that were removed.
    """
    with store.register.removing() as allowed:
        if allowed:
            return _expire(store, keep)
    log.warning("pool %s: a backup is being made, so nothing is removed", store.location)
    return []


def _expire(store: PoolStore, keep: int) -> list[str]:
    versions = store.register.versions()
    pinned = set(store.register.pins().values())
    expired, of_expired = list[str](), set[str]()
    for version in versions[max(1, keep) :]:
        if version in pinned:
            continue
        try:
            store.register.drop(version)
        except PoolError as error:  # pinned meanwhile
            log.warning("%s", error)
            continue
        of_expired |= store.segments_named_by(version)
        store.files.remove(manifest_path(version))
        expired.append(version)
    left = [name.removesuffix(".json") for name in store.files.names("versions") if name.endswith(".json")]
    for name, written in store.files.names("loaded").items():  # what builders note beside a version
        if name not in left and time.time() - written > _GRACE_SECONDS:
            store.files.remove(f"loaded/{name}")
    needed = {entry.sha256 for version in left for entry in store.manifest(version).segments}
    for folder in ("segments", "versions"):
        for name, written in store.files.names(folder).items():
            stale = time.time() - written > _GRACE_SECONDS
            unnamed = is_scratch(name) or (folder == "segments" and name not in needed)
            if unnamed and (stale or name in of_expired):
                store.files.remove(f"{folder}/{name}")
    return expired


def forget(store: PoolStore, entities: Iterable[str], texts: Iterable[Sequence[int]] = ()) -> PoolManifest:
    """Put a version in force without any text about these entities, and keep them out of later ones.

    Older versions hold the texts until they are expired, or purged: see :func:`purge`.

    Args:
        store: the pool.
        entities: ids.
        texts: token ids of texts that go too where the pool does not know whom they are about.

    Raises:
        PoolError: there is no pool, or as :meth:`PoolBuilder.publish`.
    """
    before = store.current()
    base = store.manifest(before)
    whose = Whose.of(entities, texts)
    builder = PoolBuilder(store, base.model, base.tokenizer_hash, base.vocabulary, base.scheme)
    groups: dict[str, list[SegmentEntry]] = {}
    for name, part in base.groups.items():
        segments = [store.segment(entry) for entry in part.segments]
        groups[name] = builder.thin_out(part.segments, segments, [one.without(*whose) for one in segments])
    return builder.put_in_force(groups, base.halvings, {*base.forgotten, *whose.entities.tolist()}, before)


def purge(store: PoolStore, entities: Sequence[str], texts: Sequence[Sequence[int]] = ()) -> list[str]:
    """Leave nothing of these entities in any file of the pool, nor in this host's cache; see :func:`forget` for both.

    Waits for a backup to end. A version without them is put in force; every other version that holds a text of theirs
    is removed, pinned or not, and so are their files, those of candidates and of broken-off builders too. Broken off,
    it is run again.

    Returns:
        The versions that were removed.

    Raises:
        PoolError: as :meth:`PoolBuilder.publish`.
    """
    with store.register.removing(wait=True):
        return _purge(store, entities, texts)


def _purge(store: PoolStore, entities: Sequence[str], texts: Sequence[Sequence[int]]) -> list[str]:
    if store.in_force():
        forget(store, entities, texts)
    held = set(holding(store, entities, texts))
    in_force = store.in_force()
    pins = store.register.pins()
    removed = list[str]()
    for name in store.files.names("versions"):
        version = name.removesuffix(".json")
        if version == in_force or not (is_scratch(name) or _may_name(store, version, held)):
            continue
        for holder, pinned in pins.items():
            if pinned == version:
                store.register.unpin(holder)
        store.register.drop(version)
        store.files.remove(f"versions/{name}")
        removed += [version] if VERSION.fullmatch(version) else []
    for name in held:
        store.files.remove(name)
    store.files.remove_copies(held)
    return removed


def holding(store: PoolStore, entities: Iterable[str], texts: Iterable[Sequence[int]] = ()) -> list[str]:
    """The segments' files that hold a text of these entities, or cannot be read, whichever version names them."""
    whose, found = Whose.of(entities, texts), list[str]()
    for name in {**store.files.names("segments"), **store.files.copies("segments")}:
        with suppress(FileNotFoundError), store.files.as_local(f"segments/{name}") as path:
            if whose.are_in(path):
                found.append(f"segments/{name}")
    return found


def _may_name(store: PoolStore, version: str, files: Collection[str]) -> bool:
    """Whether a version names one of the files, as far as its manifest can be read."""
    try:
        return any(f"segments/{entry.sha256}" in files for entry in store.manifest(version).segments)
    except PoolError:
        return True
