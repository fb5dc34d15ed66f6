"""Reading a pool: a version that is opened to draft from, and what versions hold."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dare_core.errors import PoolError
from dare_core.pools.addresses import MAPPED, rows_of
from dare_core.pools.index import START
from dare_core.pools.manifest import GLOBAL_GROUP, PoolManifest
from dare_core.pools.segments import Segment, SegmentEntry
from dare_core.pools.store import PoolStore

log = logging.getLogger(__name__)

_EXPORTED: Final = {"group": pa.string(), "token_ids": pa.list_(pa.int32()), "day": pa.date32()}


class Pool:
    """An opened version. A group's segments are memory-mapped when the group is first asked for."""

    def __init__(self, store: PoolStore, manifest: PoolManifest) -> None:
        self.manifest = manifest
        self._store = store
        self._groups: dict[str, list[Segment]] = {}
        self._areas: dict[str, tuple[int, int]] = {}
        self._rows = np.empty(0, MAPPED)

    @classmethod
    def open(cls, store: PoolStore, tokenizer_hash: str, version: str | None = None, no_other: bool = False) -> "Pool":
        """A version (default: the one in force) to draft from.

        Its files are those whose headers and bytes this host has checked; others are checked now. Where one is damaged
        the version before is opened instead, with a warning, unless ``no_other`` may be: strict texts come out the
        same, only slower.

        Raises:
            PoolError: see :meth:`PoolStore.manifest`; or the pool was built with another tokenizer; or no version is
                whole.
        """
        wanted = store.manifest(version)
        _check_tokenizer(store, wanted, tokenizer_hash)
        try:
            store.check(wanted)
        except PoolError as error:
            damage = error
        else:
            return cls(store, wanted)
        log.warning("pool version %s cannot be used: %s", wanted.version, damage)
        for candidate in [] if no_other else store.versions_before(wanted.version):
            try:
                manifest = store.manifest(candidate)
                _check_tokenizer(store, manifest, tokenizer_hash)
                store.check(manifest)
            except PoolError as error:
                log.warning("pool version %s cannot be used: %s", candidate, error)
                continue
            log.warning("pool version %s is used instead of %s", candidate, wanted.version)
            return cls(store, manifest)
        raise damage

    @property
    def store(self) -> PoolStore:
        """Where it lies, so that another process may open the same version."""
        return self._store

    @property
    def segments(self) -> NDArray[np.void]:
        """``[n]`` :data:`~dare_core.pools.addresses.MAPPED`: what :meth:`area` has mapped so far."""
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
            self._groups[group] = [self._store.segment(entry) for entry in entries]
        return self._groups[group]


@dataclass(frozen=True)
class PoolDifference:
    """What one version holds otherwise than another: texts that are new and gone, by group."""

    added: Mapping[str, int]
    removed: Mapping[str, int]


def diff(store: PoolStore, old: str, new: str) -> PoolDifference:
    """The texts that are in one version's groups and not in the other's, counted."""
    held = [
        {name: _hashes(store, part.segments) for name, part in store.manifest(version).groups.items()}
        for version in (old, new)
    ]
    none = np.empty(0, [("text", "<u8"), ("entity", "<u8")])
    counts: list[dict[str, int]] = []
    for one, other in (held[::-1], held):
        found = {name: int((~np.isin(texts, other.get(name, none))).sum()) for name, texts in one.items()}
        counts.append({name: n for name, n in found.items() if n and name != GLOBAL_GROUP})
    return PoolDifference(*counts)


def texts_of(store: PoolStore, manifest: PoolManifest) -> pa.Table:
    """The texts of a version's groups: ``group``, ``token_ids`` and ``day`` (null where unknown)."""
    parts = [pa.table({name: pa.array([], kind) for name, kind in _EXPORTED.items()})]
    for group, part in manifest.groups.items():
        for segment in map(store.segment, part.segments if group != GLOBAL_GROUP else ()):
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


def _check_tokenizer(store: PoolStore, manifest: PoolManifest, tokenizer_hash: str) -> None:
    if manifest.tokenizer_hash != tokenizer_hash:
        raise PoolError(
            f"pool {store.location} version {manifest.version} was built with tokenizer {manifest.tokenizer_hash} "
            f"(model {manifest.model}), but the model in use has tokenizer {tokenizer_hash}; build the pool again"
        )


def _hashes(store: PoolStore, entries: Sequence[SegmentEntry]) -> NDArray[np.void]:
    """What stands for each text and whom it is about."""
    rows = [store.segment(entry).rows[["text", "entity"]] for entry in entries]
    return np.concatenate(rows) if rows else np.empty(0, [("text", "<u8"), ("entity", "<u8")])
