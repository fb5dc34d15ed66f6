"""Making a pool's versions: new texts become segments, segments are merged, and what comes of it is put in force."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Growth:
    """What a group holds, and the segments of texts that are to be added to it."""

    group: str
    held: tuple[SegmentEntry, ...]
    added: tuple[SegmentEntry, ...] = ()


@dataclass(frozen=True)
class Grown:
    """What a group has come to.

    Attributes:
        group: its name.
        segments: what it holds.
        new: the texts among them that it did not have, as segments of their own.
        written: names of all segments that were written or given on the way, for :meth:`PoolBuilder.put_in_force`.
    """

    group: str
    segments: tuple[SegmentEntry, ...]
    new: tuple[SegmentEntry, ...]
    written: tuple[str, ...]


class PoolBuilder:
    """Makes versions of one pool.

    A version is made in steps: :meth:`growths` says what is to be done, :meth:`grow` does it for one group, and
    :meth:`sample` takes a part of the new texts for the global pool; what is large is done in these two, each on its
    own, by as many processes as there are. :meth:`publish_grown` puts the results together. :meth:`publish` does it
    all.

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
        before = onto or replacing or self._store.in_force()
        forgotten = self.forgotten(before)
        grown = [self.grow(growth, forgotten) for growth in self.growths(segments, onto)]
        halvings = self.halvings(grown, onto)
        samples = self.sample([entry for group in grown for entry in group.new], halvings)
        return self.publish_grown(grown, samples, halvings, onto, before)

    def forgotten(self, version: str | None) -> tuple[int, ...]:
        """The entities that the version in force keeps out."""
        return self._store.manifest(version).forgotten if version and self._store.has(version) else ()

    def growths(self, segments: Mapping[str, Sequence[SegmentEntry]], onto: str | None) -> list[Growth]:
        """What the groups hold and what is added to them, by name.

        Args:
            segments: new segments by group.
            onto: the version that they are added to; None: the new version holds nothing else.

        Raises:
            PoolError: a group has a name that it cannot have; or ``onto`` is of another tokenizer.
        """
        for group in segments:
            check_group(group)
        base = self._store.manifest(onto) if onto else None
        if base and base.tokenizer_hash != self._tokenizer_hash:
            raise PoolError(
                f"pool version {onto} was built with tokenizer {base.tokenizer_hash}, the new texts with "
                f"{self._tokenizer_hash}; build the pool again"
            )
        held = {name: part.segments for name, part in base.groups.items() if name != GLOBAL_GROUP} if base else {}
        return [
            Growth(group, tuple(held.get(group, ())), tuple(segments.get(group, ())))
            for group in sorted(held.keys() | segments.keys())
        ]

    def grow(self, growth: Growth, forgotten: Sequence[int]) -> Grown:
        """Add segments to a group, without texts that it has and those of forgotten entities; merge, and evict.

        Raises:
            PoolError: a segment is damaged, or cannot be written.
        """
        others, self._unnamed = self._unnamed, {entry.sha256 for entry in growth.added}
        known = [self._store.segment(entry) for entry in growth.held] if growth.added else []
        new = list[SegmentEntry]()
        for entry in growth.added:
            segment, settled = self._only_new(entry, known, forgotten)
            if segment.texts:
                known.append(segment)
                new.append(settled)
        entries = [*growth.held, *new]
        segments = self._settle(entries, self._limits) if entries else []
        written = tuple(sorted(self._unnamed))
        others.update(written)
        self._unnamed = others
        return Grown(growth.group, tuple(segments), tuple(new), written)

    def halvings(self, grown: Iterable[Grown], onto: str | None) -> int:
        """How often the global pool's sample of a version is halved; see :class:`PoolManifest`."""
        tokens = sum(entry.tokens for group in grown for entry in group.segments)
        halvings = self._store.manifest(onto).halvings if onto else 0
        while tokens >> halvings > GLOBAL_TOKENS:
            halvings += 1
        return halvings

    def sample(self, new: Sequence[SegmentEntry], halvings: int) -> list[SegmentEntry]:
        """What the global pool takes of new segments, as one segment; none where that is nothing.

        Raises:
            PoolError: a segment is damaged, or cannot be written.
        """
        segments = [self._store.segment(entry) for entry in new]
        sample = Segment.merge(segments, [_sampled(segment, halvings) for segment in segments])
        return [self._write(sample)] if sample.texts else []

    def publish_grown(
        self,
        grown: Sequence[Grown],
        samples: Sequence[SegmentEntry],
        halvings: int,
        onto: str | None,
        before: str | None,
    ) -> PoolManifest:
        """Put together a version from groups that have grown, and make it the one in force.

        Args:
            grown: all groups.
            samples: of their new texts, for the global pool.
            halvings: that they were taken with.
            onto: the version that was added to.
            before: the one that was in force then.

        Raises:
            PoolError: see :meth:`publish`.
        """
        base = self._store.manifest(onto) if onto else None
        everything = list(base.groups[GLOBAL_GROUP].segments) if base and GLOBAL_GROUP in base.groups else []
        if base and halvings > base.halvings:
            everything = self._thinned(everything, halvings)
        if len(samples) > 1:
            everything.append(self._write(Segment.merge([self._store.segment(entry) for entry in samples])))
        else:
            everything += samples
        if everything:
            everything = self._settle(everything, Limits(max_age_days=self._limits.max_age_days))
        self._unnamed.update([entry.sha256 for entry in samples], *(group.written for group in grown))
        groups = {group.group: group.segments for group in grown} | {GLOBAL_GROUP: tuple(everything)}
        return self.put_in_force(groups, halvings, self.forgotten(before), before)

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
        forgotten = np.array(self.forgotten(current), np.uint64)
        built = {group: Segment.build(part, self._vocabulary) for group, part in _by_group(texts)}
        for group, segment in built.items():
            keep = segment.without(forgotten)
            if not keep.all():
                built[group] = Segment.merge([segment], [keep])
        return {group: [self._store.write_segment(segment)] for group, segment in built.items() if segment.texts}

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
