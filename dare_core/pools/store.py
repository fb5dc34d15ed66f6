"""Pool versions: immutable, named by their content, published by moving one pointer.

<root>/versions/<version>.json      manifests
<root>/segments/<sha256>            the files that manifests name; versions share those that did not change
<root>/CURRENT, pins/, .lock        the register of a pool without a warehouse
<root>/verified/<host>/<sha256>     notes that a host has checked a segment's bytes
"""

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dare_core.errors import PoolError
from dare_core.pools.eviction import Limits, choose
from dare_core.pools.files import DEFAULT_CACHE_BYTES, PoolFiles
from dare_core.pools.index import START
from dare_core.pools.manifest import GLOBAL_GROUP, GroupManifest, PoolManifest
from dare_core.pools.mapping import MAPPED, rows_of
from dare_core.pools.register import VERSION, FileRegister, Register
from dare_core.pools.segments import Segment, SegmentEntry, entity_hash, text_hash, tier
from dare_core.storage.files import DEFAULT_CACHE

log = logging.getLogger(__name__)

#: Segments of a group at most: a base and eight recent ones.
MOST_SEGMENTS: Final = 9
#: Tokens of the global pool at most. It serves entities whose group is new, and helps where a group is small; past this
#: size more of it helps neither (docs/pools.md), so it becomes a sample of all groups' texts.
GLOBAL_TOKENS: Final = 2_000_000
#: A file that no version names is removed when it is older: a builder at work may be about to name it.
_GRACE_SECONDS: Final = 24 * 3600
_EXPORTED: Final = {"group": pa.string(), "token_ids": pa.list_(pa.int32()), "day": pa.date32()}


class Pool:
    """An opened version. A group's segments are memory-mapped when the group is first asked for."""

    def __init__(self, files: PoolFiles, manifest: PoolManifest) -> None:
        self.manifest = manifest
        self._files = files
        self._groups: dict[str, list[Segment]] = {}
        self._areas: dict[str, tuple[int, int]] = {}
        self._rows = np.empty(0, MAPPED)

    @property
    def location(self) -> str:
        """The root of its store, from where another process may open the same version."""
        return self._files.location

    @property
    def segments(self) -> NDArray[np.void]:
        """``[n]`` :data:`~dare_core.pools.mapping.MAPPED`: what :meth:`area` has mapped so far."""
        return self._rows

    def resolve(self, group: str) -> str | None:
        """``group`` where the pool has it, else the global pool; None when the pool is empty."""
        if not self.manifest.texts:
            return None
        return group if group in self.manifest.groups else GLOBAL_GROUP

    def area(self, group: str) -> tuple[int, int]:
        """Which of :attr:`segments` are those of a group that the manifest names: ``[first, end)``.

        Raises:
            PoolError: its files are missing or damaged.
        """
        if group not in self._areas:
            first = len(self._rows)
            self._rows = np.concatenate([self._rows, rows_of([segment.index for segment in self.group(group)])])
            self._areas[group] = first, len(self._rows)
        return self._areas[group]

    def group(self, group: str) -> list[Segment]:
        """The segments of a group that the manifest names, the oldest first.

        Raises:
            PoolError: their files are missing or damaged.
        """
        if group not in self._groups:
            entries = self.manifest.groups[group].segments
            self._groups[group] = [Segment.map(self._files.segment(entry)) for entry in entries]
        return self._groups[group]


@dataclass(frozen=True)
class PoolDifference:
    """What one version holds otherwise than another: texts that are new and gone, by group."""

    added: Mapping[str, int]
    removed: Mapping[str, int]


class PoolStore:
    """The versions under one root.

    Args:
        root: a folder, or a URL that fsspec knows.
        register: which version is in force; default: files beside the versions, or for object storage in the cache.
        cache: folder for what is read from object storage.
        cache_bytes: what it may hold.
    """

    def __init__(
        self,
        root: Path | str,
        register: Register | None = None,
        cache: Path = DEFAULT_CACHE,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.files = PoolFiles(str(root), cache, cache_bytes)
        #: The root as it was given, and the local folder that it is or that stands for it here.
        self.location, self.root = str(root), self.files.host_root
        self._unnamed = set[str]()
        self.register = register or FileRegister(self.root)

    # Building

    def build(
        self,
        texts: pa.Table,
        model: str,
        tokenizer_hash: str,
        vocabulary: int,
        scheme: str = "",
        limits: Limits = Limits(),  # noqa: B008  frozen
    ) -> PoolManifest:
        """Index texts and make them the version in force. The same texts give the same version, written once.

        Args:
            texts: column ``group``, and those of :meth:`~dare_core.pools.segments.Segment.build`.
            model: the model that wrote them; kept for the reader.
            tokenizer_hash: what the token ids mean.
            vocabulary: token ids are below it.
            scheme: the group scheme that ``group`` follows; kept for the reader.
            limits: what a group may hold.

        Raises:
            PoolError: a group has a name that it cannot have, a token id is out of range, something cannot be written,
                or another builder has published meanwhile.
        """
        current = self._current()
        return self.publish(
            self._written(texts, vocabulary, current),
            model, tokenizer_hash, vocabulary, scheme, limits=limits, replacing=current,
        )  # fmt: skip

    def add(
        self,
        texts: pa.Table,
        model: str,
        tokenizer_hash: str,
        vocabulary: int,
        scheme: str = "",
        limits: Limits = Limits(),  # noqa: B008  frozen
    ) -> PoolManifest:
        """Add texts to the version in force as new segments, and put that in force; arguments as of :meth:`build`.

        Raises:
            PoolError: as :meth:`build`; or there is no version yet, or it is of another tokenizer.
        """
        current = self.current()
        return self.publish(
            self._written(texts, vocabulary, current),
            model, tokenizer_hash, vocabulary, scheme, onto=current, limits=limits,
        )  # fmt: skip

    def write_segment(self, segment: Segment) -> SegmentEntry:
        """Write a segment's file under the name of its content, unless it is there already, whole."""
        data = segment.to_bytes()
        entry = SegmentEntry(hashlib.sha256(data).hexdigest(), segment.texts, segment.tokens, len(data))
        name = f"segments/{entry.sha256}"
        if not (self.files.exists(name) and self._is_whole(entry)):
            self.files.write(name, data)
        return entry

    def publish(
        self,
        segments: Mapping[str, Sequence[SegmentEntry]],
        model: str,
        tokenizer_hash: str,
        vocabulary: int,
        scheme: str = "",
        onto: str | None = None,
        limits: Limits = Limits(),  # noqa: B008  frozen
        replacing: str | None = None,
    ) -> PoolManifest:
        """Put together a version from segments that are written, and make it the one in force.

        Texts that a group has already, and texts of forgotten entities, are left out; small segments are merged; what
        the limits say is evicted; the global pool takes in its sample of what is new.

        Args:
            segments: new segments by group.
            model: see :meth:`build`, as for the next three.
            tokenizer_hash: what the token ids mean.
            vocabulary: token ids are below it.
            scheme: the group scheme.
            onto: the version that they are added to; None: the new version holds nothing else.
            limits: what a group may hold.
            replacing: without ``onto``, the version that was in force when the builder began; default: the one that is
                now.

        Raises:
            PoolError: ``onto`` is of another tokenizer; another builder has published since; a segment is damaged; or
                something cannot be written. The version in force stays.
        """
        for group in segments:
            check_group(group)
        before = onto or replacing or self._current()
        base = self.manifest(onto) if onto else None
        if base and base.tokenizer_hash != tokenizer_hash:
            raise PoolError(
                f"pool version {onto} was built with tokenizer {base.tokenizer_hash}, the new texts with "
                f"{tokenizer_hash}; build the pool again"
            )
        forgotten = self._forgotten(before)
        groups = {name: list(part.segments) for name, part in base.groups.items()} if base else {}
        everything = groups.pop(GLOBAL_GROUP, [])
        new: list[Segment] = []
        for group, entries in sorted(segments.items()):
            known = [self.segment(entry) for entry in groups.get(group, [])]
            for entry in entries:
                segment, settled = self._only_new(entry, known, forgotten)
                if segment.texts:
                    known.append(segment)
                    new.append(segment)
                    groups.setdefault(group, []).append(settled)
        today = (datetime.now(UTC).date() - date(1970, 1, 1)).days
        groups = {name: self._settle(entries, limits, today) for name, entries in groups.items()}
        tokens = sum(entry.tokens for entries in groups.values() for entry in entries)
        halvings = base.halvings if base else 0
        while tokens >> halvings > GLOBAL_TOKENS:
            halvings += 1
        everything = self._sample(everything, new, halvings, base, Limits(max_age_days=limits.max_age_days), today)
        parts = {name: GroupManifest(tuple(entries)) for name, entries in groups.items() if entries}
        manifest = PoolManifest.of(
            {**parts, GLOBAL_GROUP: GroupManifest(tuple(everything))},
            model=model, tokenizer_hash=tokenizer_hash, vocabulary=vocabulary, scheme=scheme, halvings=halvings,
            forgotten=forgotten,
        )  # fmt: skip
        self._unnamed |= {entry.sha256 for entries in segments.values() for entry in entries}
        return self._put_in_force(manifest, before)

    def forget(self, entities: Iterable[str], texts: Iterable[Sequence[int]] = ()) -> PoolManifest:
        """Put a version in force without any text about these entities, and keep them out of later ones.

        Older versions hold the texts until they are expired, or purged: see :meth:`purge`.

        Args:
            entities: ids.
            texts: token ids of texts that go too where the pool does not know whom they are about.

        Raises:
            PoolError: there is no pool, or as :meth:`publish`.
        """
        before = self.current()
        base = self.manifest(before)
        hashes, unnamed = _hashes(entities, texts)
        groups: dict[str, GroupManifest] = {}
        for name, part in base.groups.items():
            entries = []
            for entry in part.segments:
                segment = self.segment(entry)
                kept = segment.without(hashes, unnamed)
                if kept.all():
                    entries.append(entry)
                elif kept.any():
                    entries.append(self._put(Segment.merge([segment], [kept])))
            if entries or name == GLOBAL_GROUP:
                groups[name] = GroupManifest(tuple(entries))
        manifest = PoolManifest.of(
            groups, model=base.model, tokenizer_hash=base.tokenizer_hash, vocabulary=base.vocabulary,
            scheme=base.scheme, halvings=base.halvings,
            forgotten=tuple(sorted({*base.forgotten, *hashes.tolist()})),
        )  # fmt: skip
        return self._put_in_force(manifest, before)

    def purge(self, entities: Sequence[str], texts: Sequence[Sequence[int]] = ()) -> list[str]:
        """Leave nothing of these entities in any file of the pool, nor in this host's cache; arguments as of forget.

        A version without them is put in force; every other version that holds a text of theirs is removed, pinned or
        not, and so are their files, those of candidates and of broken-off builders too. Broken off, it is run again.

        Returns:
            The versions that were removed.

        Raises:
            PoolError: as :meth:`publish`.
        """
        if self._current():
            self.forget(entities, texts)
        held = set(self.holding(entities, texts))
        in_force = self._current()
        pins = self.register.pins()
        removed = list[str]()
        for name in self.files.names("versions"):
            version = name.removesuffix(".json")
            if version == in_force or not (name.startswith(".writing-") or self._may_name(version, held)):
                continue
            for holder, pinned in pins.items():
                if pinned == version:
                    self.register.unpin(holder)
            self.register.drop(version)
            self.files.remove(f"versions/{name}")
            removed += [version] if VERSION.fullmatch(version) else []
        for name in held:
            self.files.remove(name)
            self.files.remove_copies(name)
        return removed

    def holding(self, entities: Iterable[str], texts: Iterable[Sequence[int]] = ()) -> list[str]:
        """The segments' files that hold a text of these entities, or cannot be read, whichever version names them."""
        hashes, unnamed = _hashes(entities, texts)
        names = [f"segments/{name}" for name in {**self.files.names("segments"), **self.files.copies("segments")}]
        return [name for name in names if not self._is_without(name, hashes, unnamed)]

    # Reading

    def current(self) -> str:
        """The version in force.

        Raises:
            PoolError: there is no pool at this root.
        """
        if version := self._current():
            return version
        raise PoolError(f"there is no pool at {self.location}; build one with `dare pool build --out {self.location}`")

    def versions(self) -> list[str]:
        """The version in force, then those before it, the latest first."""
        return [version for version in self.register.versions() if self.files.exists(_path(version))]

    def version_before(self, version: str) -> str:
        """The version that was in force before another.

        Raises:
            PoolError: there is none.
        """
        versions = self.versions()
        if version in versions[:-1]:
            return versions[versions.index(version) + 1]
        raise PoolError(f"pool {self.location} has no version before {version}")

    def manifest(self, version: str | None = None) -> PoolManifest:
        """What a version (default: the one in force) holds.

        Raises:
            PoolError: the version is not there, or its manifest is damaged or from a newer release.
        """
        version = version or self.current()
        if not VERSION.fullmatch(version):
            raise PoolError(f"{version!r} is not a pool version; versions are 16 hex digits")
        try:
            return PoolManifest.of_json(self.files.read(_path(version)), version, f"{self.location}/{_path(version)}")
        except FileNotFoundError:
            raise PoolError(f"pool {self.location} has no version {version!r}") from None

    def open(self, tokenizer_hash: str, version: str | None = None, no_other: bool = False) -> Pool:
        """A version (default: the one in force) to draft from.

        Headers and, the first time on this host, all bytes are checked. Where a version is damaged the one before it is
        opened instead, with a warning, unless ``no_other`` may be: strict texts come out the same, only slower.

        Raises:
            PoolError: see :meth:`manifest`; or the pool was built with another tokenizer; or no version is whole.
        """
        wanted = self.manifest(version)
        self._check_tokenizer(wanted, tokenizer_hash)
        damage: PoolError | None = None
        for candidate in [wanted.version] if no_other else self._from(wanted.version):
            try:
                manifest = self.manifest(candidate)
                self._check_tokenizer(manifest, tokenizer_hash)
                self.check(manifest)
            except PoolError as error:
                damage = damage or error
                log.warning("pool version %s cannot be used: %s", candidate, error)
                continue
            if damage:
                log.warning("pool version %s is used instead of %s", candidate, wanted.version)
            return Pool(self.files, manifest)
        assert damage is not None
        raise damage

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
            thoroughly: read bytes again that this host has checked before.

        Raises:
            PoolError: names the first file that is not.
        """
        for entry in _entries(manifest):
            segment = Segment.map(self.files.segment(entry, anew=thoroughly))
            if (segment.texts, segment.tokens) != (entry.texts, entry.tokens):
                raise PoolError(f"segment {entry.sha256} holds something else than version {manifest.version} says")

    def diff(self, old: str, new: str) -> PoolDifference:
        """The texts that are in one version's groups and not in the other's, counted."""
        held = [
            {name: self._texts_of(part.segments) for name, part in self.manifest(version).groups.items()}
            for version in (old, new)
        ]
        none = np.empty(0, [("text", "<u8"), ("entity", "<u8")])
        counts: list[dict[str, int]] = []
        for one, other in (held[::-1], held):
            found = {name: int((~np.isin(texts, other.get(name, none))).sum()) for name, texts in one.items()}
            counts.append({name: n for name, n in found.items() if n and name != GLOBAL_GROUP})
        return PoolDifference(*counts)

    def texts(self, manifest: PoolManifest) -> pa.Table:
        """The texts of a version's groups: ``group``, ``token_ids`` and ``day`` (null where unknown)."""
        parts = [pa.table({name: pa.array([], kind) for name, kind in _EXPORTED.items()})]
        for group, part in manifest.groups.items():
            for segment in map(self.segment, part.segments if group != GLOBAL_GROUP else ()):
                rows = segment.rows
                ids = segment.index.tokens[segment.index.tokens != START]
                ends = np.concatenate([[0], np.cumsum(rows["length"])]).astype(np.int32)
                columns = {
                    "group": pa.array([group] * len(rows), pa.string()),
                    "token_ids": pa.ListArray.from_arrays(ends, ids),
                    "day": pa.array(rows["day"], pa.int32(), mask=rows["day"] == 0).cast(pa.date32()),
                }
                parts.append(pa.table(columns))
        return pa.concat_tables(parts)

    # Keeping

    def rollback(self, version: str | None = None) -> PoolManifest:
        """Put an older version (default: the one before) in force again.

        Raises:
            PoolError: there is no such version, or it is damaged.
        """
        current = self.current()
        manifest = self.manifest(version or self.version_before(current))
        self.check(manifest)
        self.register.publish(manifest, current)
        return manifest

    def pin(self, version: str, holder: str) -> None:
        """Keep a version from being expired until the holder is done."""
        self.manifest(version)
        self.register.pin(version, holder)

    def unpin(self, holder: str) -> None:
        """The holder is done with the version that it pinned."""
        self.register.unpin(holder)

    def expire(self, keep: int) -> list[str]:
        """Remove all but the latest ``keep`` versions and those that are pinned, and the files that none of them names.

        Returns:
            The versions that were removed.
        """
        versions = self.register.versions()
        pinned = set(self.register.pins().values())
        expired, of_expired = list[str](), set[str]()
        for version in versions[max(1, keep) :]:
            if version in pinned:
                continue
            try:
                self.register.drop(version)
            except PoolError as error:  # pinned meanwhile
                log.warning("%s", error)
                continue
            of_expired |= self._named(version)
            self.files.remove(_path(version))
            expired.append(version)
        left = [name.removesuffix(".json") for name in self.files.names("versions") if name.endswith(".json")]
        needed = {entry.sha256 for version in left for entry in _entries(self.manifest(version))}
        for folder in ("segments", "versions"):
            for name, written in self.files.names(folder).items():
                stale = time.time() - written > _GRACE_SECONDS
                unnamed = name.startswith(".writing-") or (folder == "segments" and name not in needed)
                if unnamed and (stale or name in of_expired):
                    self.files.remove(f"{folder}/{name}")
        return expired

    # What these are made of

    def _current(self) -> str | None:
        versions = self.register.versions()
        return versions[0] if versions else None

    def _put(self, segment: Segment) -> SegmentEntry:
        """Write a segment that a version may come to name, or only the next step of its making."""
        entry = self.write_segment(segment)
        self._unnamed.add(entry.sha256)
        return entry

    def _written(self, texts: pa.Table, vocabulary: int, current: str | None) -> dict[str, list[SegmentEntry]]:
        """A new segment per group. All are built before one is written, and nothing of forgotten entities is."""
        forgotten = np.array(self._forgotten(current), np.uint64)
        built = {group: Segment.build(part, vocabulary) for group, part in _by_group(texts)}
        for group, segment in built.items():
            keep = segment.without(forgotten)
            if not keep.all():
                built[group] = Segment.merge([segment], [keep])
        return {group: [self.write_segment(segment)] for group, segment in built.items() if segment.texts}

    def _forgotten(self, version: str | None) -> tuple[int, ...]:
        """The entities that the version in force keeps out."""
        return self.manifest(version).forgotten if version and self.files.exists(_path(version)) else ()

    def _named(self, version: str) -> set[str]:
        """The segments that a version names; none where its manifest is gone or damaged."""
        try:
            return {entry.sha256 for entry in _entries(self.manifest(version))}
        except PoolError as error:
            log.warning("%s", error)
            return set()

    def _may_name(self, version: str, files: set[str]) -> bool:
        """Whether a version names one of the files, as far as its manifest can be read."""
        try:
            return any(f"segments/{entry.sha256}" in files for entry in _entries(self.manifest(version)))
        except PoolError:
            return True

    def _is_without(self, name: str, entities: NDArray[np.uint64], texts: NDArray[np.uint64]) -> bool:
        try:
            if self.files.local:
                segment = Segment.map(self.files.local / name)
            else:
                data = self.files.read(name) if self.files.exists(name) else self.files.read_copy(name)
                segment = Segment.of_bytes(data, name)
        except (PoolError, FileNotFoundError):
            return False
        return bool(segment.without(entities, texts).all())

    def _is_whole(self, entry: SegmentEntry) -> bool:
        try:
            self.files.segment(entry)
        except PoolError:
            return False
        return True

    def _from(self, version: str) -> list[str]:
        """A version and those before it, the latest first; by their files' times where the register knows none."""
        history = self.versions()
        if version not in history:
            written = self.files.names("versions")
            latest_first = sorted(written, key=lambda name: written[name], reverse=True)
            history = [name.removesuffix(".json") for name in latest_first if name.endswith(".json")]
        return history[history.index(version) :]

    def _check_tokenizer(self, manifest: PoolManifest, tokenizer_hash: str) -> None:
        if manifest.tokenizer_hash != tokenizer_hash:
            raise PoolError(
                f"pool {self.location} version {manifest.version} was built with tokenizer {manifest.tokenizer_hash} "
                f"(model {manifest.model}), but the model in use has tokenizer {tokenizer_hash}; build the pool again"
            )

    def _only_new(
        self, entry: SegmentEntry, known: Sequence[Segment], forgotten: Sequence[int]
    ) -> tuple[Segment, SegmentEntry]:
        """A segment without the texts that the group has, and without those of forgotten entities."""
        segment = self.segment(entry)
        keep = segment.without(np.array(forgotten, np.uint64))
        mine = segment.rows[["text", "entity"]]
        for other in known:
            about = np.isin(other.rows["text"], segment.rows["text"]) & (other.rows["entity"] != 0)
            keep &= ~np.isin(mine, other.rows[["text", "entity"]][about])
        if keep.all():
            return segment, entry
        segment = Segment.merge([segment], [keep])
        return segment, self._put(segment) if segment.texts else entry

    def _settle(self, entries: list[SegmentEntry], limits: Limits, today: int) -> list[SegmentEntry]:
        """Merge a group's newest segments where there is reason to, and evict."""
        entries = self._merge_from(entries, tier([entry.tokens for entry in entries], MOST_SEGMENTS))
        if limits == Limits():
            return entries
        segments = [self.segment(entry) for entry in entries]
        kept = []
        for entry, segment, keep in zip(entries, segments, choose(segments, limits, today), strict=True):
            if keep.all():
                kept.append(entry)
            elif keep.any():
                kept.append(self._put(Segment.merge([segment], [keep])))
        return kept

    def _merge_from(self, entries: list[SegmentEntry], begin: int) -> list[SegmentEntry]:
        if begin == len(entries) - 1:
            return entries
        merged = Segment.merge([self.segment(entry) for entry in entries[begin:]])
        return [*entries[:begin], self._put(merged)]

    def _sample(
        self,
        entries: list[SegmentEntry],
        new: Sequence[Segment],
        halvings: int,
        base: PoolManifest | None,
        limits: Limits,
        today: int,
    ) -> list[SegmentEntry]:
        """The global pool's segments, with its sample of the new ones."""
        if base is not None and halvings > base.halvings:
            thinned = [self.segment(entry) for entry in entries]
            thinned = [Segment.merge([segment], [_sampled(segment, halvings)]) for segment in thinned]
            entries = [self._put(segment) for segment in thinned if segment.texts]
        if new:
            segment = Segment.merge(new, [_sampled(segment, halvings) for segment in new])
            if segment.texts:
                entries = [*entries, self._put(segment)]
        return self._settle(entries, limits, today) if entries else entries

    def _put_in_force(self, manifest: PoolManifest, expected: str | None) -> PoolManifest:
        if not self.files.exists(_path(manifest.version)):
            self.files.write(_path(manifest.version), manifest.to_json())
        self.register.publish(manifest, expected)
        # What was merged on the way has served.
        for name in self._unnamed.difference(*map(self._named, self.versions())):
            self.files.remove(f"segments/{name}")
        self._unnamed.clear()
        return manifest

    def _texts_of(self, entries: Sequence[SegmentEntry]) -> NDArray[np.void]:
        rows = [self.segment(entry).rows[["text", "entity"]] for entry in entries]
        return np.concatenate(rows) if rows else np.empty(0, [("text", "<u8"), ("entity", "<u8")])


def _hashes(entities: Iterable[str], texts: Iterable[Sequence[int]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """What stands for entities and for texts in a segment's rows."""
    return (
        np.array([entity_hash(entity) for entity in entities], np.uint64),
        np.array([text_hash(token_ids) for token_ids in texts], np.uint64),
    )


def check_group(group: str) -> None:
    """Refuse a name that a group cannot have.

    Raises:
        PoolError: it is empty or the global pool's.
    """
    if group == GLOBAL_GROUP:
        raise PoolError(f"the group name {GLOBAL_GROUP!r} is the global pool's; rename the group")
    if not group:
        raise PoolError("a group has an empty name; name it")


def _path(version: str) -> str:
    return f"versions/{version}.json"


def _entries(manifest: PoolManifest) -> list[SegmentEntry]:
    return [entry for part in manifest.groups.values() for entry in part.segments]


def _sampled(segment: Segment, halvings: int) -> NDArray[np.bool_]:
    """Which texts the global pool holds: hashes are evenly spread, so the top bits choose a share of them."""
    if not halvings:
        return np.ones(segment.texts, np.bool_)
    chosen: NDArray[np.bool_] = segment.rows["text"] >> np.uint64(64 - halvings) == 0
    return chosen


def _by_group(texts: pa.Table) -> list[tuple[str, pa.Table]]:
    """The texts of each group that has any, by name."""
    groups = texts["group"]
    names = sorted(pc.unique(groups).to_pylist())
    for name in names:
        check_group(name)
    if len(names) == 1:
        return [(names[0], texts)]
    return [(name, texts.filter(pc.equal(groups, name))) for name in names]
