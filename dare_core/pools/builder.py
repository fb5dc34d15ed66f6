"""Making a pool's versions: new texts become segments, segments are merged, and what comes of it is put in force."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dare_core.errors import PoolError
from dare_core.pools.eviction import Limits, choose
from dare_core.pools.manifest import GLOBAL_GROUP, GroupManifest, PoolManifest
from dare_core.pools.segments import MOST_SEGMENTS, Segment, SegmentEntry, tier
from dare_core.pools.store import PoolStore, manifest_path

#: Tokens of the global pool at most. It serves entities whose group is new, and helps where a group is small; past this
#: size more of it helps neither (docs/pools.md), so it becomes a sample of all groups' texts.
GLOBAL_TOKENS: Final = 2_000_000


class PoolBuilder:
    """Makes versions of one pool.

    Args:
        store: the pool.
        model: the model that writes the texts; kept for the reader.
        tokenizer_hash: what the token ids mean.
        vocabulary: token ids are below it.
        scheme: the group scheme that the texts' groups follow; kept for the reader.
        limits: what a group may hold.
    """

    def __init__(
        self,
        store: PoolStore,
        model: str,
        tokenizer_hash: str,
        vocabulary: int,
        scheme: str = "",
        limits: Limits = Limits(),  # noqa: B008  frozen
    ) -> None:
        self._store = store
        self._model, self._tokenizer_hash, self._vocabulary, self._scheme = model, tokenizer_hash, vocabulary, scheme
        self._limits = limits
        self._today = (datetime.now(UTC).date() - date(1970, 1, 1)).days
        #: Segments that a version may come to name, or only the next step of its making.
        self._unnamed = set[str]()

    def build(self, texts: pa.Table) -> PoolManifest:
        """Index texts and make them the version in force. The same texts give the same version, written once.

        Args:
            texts: column ``group``, and those of :meth:`~dare_core.pools.segments.Segment.build`.

        Raises:
            PoolError: a group has a name that it cannot have, a token id is out of range, something cannot be written,
                or another builder has published meanwhile.
        """
        current = self._store.in_force()
        return self.publish(self._written(texts, current), replacing=current)

    def add(self, texts: pa.Table) -> PoolManifest:
        """Add texts to the version in force as new segments, and put that in force; texts as of :meth:`build`.

        Raises:
            PoolError: as :meth:`build`; or there is no version yet, or it is of another tokenizer.
        """
        current = self._store.current()
        return self.publish(self._written(texts, current), onto=current)

    def publish(
        self, segments: Mapping[str, Sequence[SegmentEntry]], onto: str | None = None, replacing: str | None = None
    ) -> PoolManifest:
        """Put together a version from segments that are written, and make it the one in force.

        Texts that a group has already, and texts of forgotten entities, are left out; small segments are merged; what
        the limits say is evicted; the global pool takes in its sample of what is new.

        Args:
            segments: new segments by group.
            onto: the version that they are added to; None: the new version holds nothing else.
            replacing: without ``onto``, the version that was in force when the builder began; default: the one that is
                now.

        Raises:
            PoolError: ``onto`` is of another tokenizer; another builder has published since; a segment is damaged; or
                something cannot be written. The version in force stays.
        """
        for group in segments:
            check_group(group)
        before = onto or replacing or self._store.in_force()
        base = self._store.manifest(onto) if onto else None
        if base and base.tokenizer_hash != self._tokenizer_hash:
            raise PoolError(
                f"pool version {onto} was built with tokenizer {base.tokenizer_hash}, the new texts with "
                f"{self._tokenizer_hash}; build the pool again"
            )
        forgotten = self._forgotten(before)
        groups = {name: list(part.segments) for name, part in base.groups.items()} if base else {}
        everything = groups.pop(GLOBAL_GROUP, [])
        new: list[Segment] = []
        for group, entries in sorted(segments.items()):
            known = [self._store.segment(entry) for entry in groups.get(group, [])]
            for entry in entries:
                segment, settled = self._only_new(entry, known, forgotten)
                if segment.texts:
                    known.append(segment)
                    new.append(segment)
                    groups.setdefault(group, []).append(settled)
        groups = {name: self._settle(entries, self._limits) for name, entries in groups.items()}
        tokens = sum(entry.tokens for entries in groups.values() for entry in entries)
        halvings = base.halvings if base else 0
        while tokens >> halvings > GLOBAL_TOKENS:
            halvings += 1
        if base and halvings > base.halvings:
            everything = self._thinned(everything, halvings)
        groups[GLOBAL_GROUP] = self._with_sample(everything, new, halvings)
        self._unnamed |= {entry.sha256 for entries in segments.values() for entry in entries}
        return self.put_in_force(groups, halvings, forgotten, before)

    def put_in_force(
        self,
        groups: Mapping[str, Sequence[SegmentEntry]],
        halvings: int,
        forgotten: Iterable[int],
        expected: str | None,
    ) -> PoolManifest:
        """Write a version of what is written, and make it the one in force; what was merged on the way has served.

        Args:
            groups: segments by group, and those of the global pool. Groups without any are left out.
            halvings: see :class:`PoolManifest`, as for the next.
            forgotten: hashes of entities.
            expected: the version that it is to follow.

        Raises:
            PoolError: see :meth:`publish`.
        """
        manifest = PoolManifest.of(
            {name: GroupManifest(tuple(held)) for name, held in groups.items() if held or name == GLOBAL_GROUP},
            model=self._model, tokenizer_hash=self._tokenizer_hash, vocabulary=self._vocabulary, scheme=self._scheme,
            halvings=halvings, forgotten=tuple(sorted(forgotten)),
        )  # fmt: skip
        self._store.files.note_checks()
        if not self._store.has(manifest.version):
            self._store.files.write(manifest_path(manifest.version), manifest.to_json())
        self._store.register.publish(manifest, expected)
        for name in self._unnamed.difference(*map(self._store.segments_named_by, self._store.versions())):
            self._store.files.remove(f"segments/{name}")
        self._unnamed.clear()
        return manifest

    def thin_out(
        self, entries: Sequence[SegmentEntry], segments: Sequence[Segment], keep: Sequence[NDArray[np.bool_]]
    ) -> list[SegmentEntry]:
        """Segments with some of their texts only, written where these are not all.

        Args:
            entries: the segments' names.
            segments: the segments.
            keep: ``[texts]`` bool for each of them: the texts to keep.
        """
        kept = []
        for entry, segment, wanted in zip(entries, segments, keep, strict=True):
            if wanted.all():
                kept.append(entry)
            elif wanted.any():
                kept.append(self._write(Segment.merge([segment], [wanted])))
        return kept

    def _write(self, segment: Segment) -> SegmentEntry:
        entry = self._store.write_segment(segment)
        self._unnamed.add(entry.sha256)
        return entry

    def _written(self, texts: pa.Table, current: str | None) -> dict[str, list[SegmentEntry]]:
        """A new segment per group. All are built before one is written, and nothing of forgotten entities is."""
        forgotten = np.array(self._forgotten(current), np.uint64)
        built = {group: Segment.build(part, self._vocabulary) for group, part in _by_group(texts)}
        for group, segment in built.items():
            keep = segment.without(forgotten)
            if not keep.all():
                built[group] = Segment.merge([segment], [keep])
        return {group: [self._store.write_segment(segment)] for group, segment in built.items() if segment.texts}

    def _forgotten(self, version: str | None) -> tuple[int, ...]:
        """The entities that the version in force keeps out."""
        return self._store.manifest(version).forgotten if version and self._store.has(version) else ()

    def _only_new(
        self, entry: SegmentEntry, known: Sequence[Segment], forgotten: Sequence[int]
    ) -> tuple[Segment, SegmentEntry]:
        """A segment without the texts that the group has, and without those of forgotten entities."""
        segment = self._store.segment(entry)
        keep = segment.without(np.array(forgotten, np.uint64))
        mine = segment.rows[["text", "entity"]]
        for other in known:
            about = np.isin(other.rows["text"], segment.rows["text"]) & (other.rows["entity"] != 0)
            keep &= ~np.isin(mine, other.rows[["text", "entity"]][about])
        if keep.all():
            return segment, entry
        segment = Segment.merge([segment], [keep])
        return segment, self._write(segment) if segment.texts else entry

    def _settle(self, entries: list[SegmentEntry], limits: Limits) -> list[SegmentEntry]:
        """Merge a group's newest segments where there is reason to, and evict."""
        begin = tier([entry.tokens for entry in entries], MOST_SEGMENTS)
        if begin < len(entries) - 1:
            merged = Segment.merge([self._store.segment(entry) for entry in entries[begin:]])
            entries = [*entries[:begin], self._write(merged)]
        if limits == Limits():
            return entries
        segments = [self._store.segment(entry) for entry in entries]
        return self.thin_out(entries, segments, choose(segments, limits, self._today))

    def _thinned(self, entries: Sequence[SegmentEntry], halvings: int) -> list[SegmentEntry]:
        """The global pool's segments, as a smaller sample."""
        segments = [self._store.segment(entry) for entry in entries]
        return self.thin_out(entries, segments, [_sampled(segment, halvings) for segment in segments])

    def _with_sample(self, entries: list[SegmentEntry], new: Sequence[Segment], halvings: int) -> list[SegmentEntry]:
        """The global pool's segments, with its sample of the new ones."""
        if new:
            segment = Segment.merge(new, [_sampled(segment, halvings) for segment in new])
            if segment.texts:
                entries = [*entries, self._write(segment)]
        return self._settle(entries, Limits(max_age_days=self._limits.max_age_days)) if entries else entries


def check_group(group: str) -> None:
    """Refuse a name that a group cannot have.

    Raises:
        PoolError: it is empty or the global pool's.
    """
    if group == GLOBAL_GROUP:
        raise PoolError(f"the group name {GLOBAL_GROUP!r} is the global pool's; rename the group")
    if not group:
        raise PoolError("a group has an empty name; name it")


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
