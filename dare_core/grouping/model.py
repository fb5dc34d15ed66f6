"""Group models: what a grouping has learned, immutable, named by its content, published by moving a pointer.

<root>/versions/<version>.json      the model but for its tables
<root>/tables/<sha256>.parquet      its tables, in pieces, shared by the versions that hold the same
<root>/CURRENT                      the version in force, where no warehouse says which; for object storage in the cache
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dare_core.errors import PoolError
from dare_core.grouping.attributes import AttributeGroups
from dare_core.grouping.clusters import ItemFactors, UserClusters
from dare_core.storage.atomic import write_atomically
from dare_core.storage.files import DEFAULT_CACHE, Files
from dare_core.storage.locations import Location

log = logging.getLogger(__name__)

#: Which cluster each user is in; entities in no cluster are not there. Sorted by ``entity_id``.
CLUSTER_ASSIGNMENT: Final = pa.schema(
    [pa.field("entity_id", pa.string(), nullable=False), pa.field("cluster", pa.string(), nullable=False)]
)

#: Versions that stay when a newer one is published.
KEPT_VERSIONS: Final = 10

#: The formats that this release reads. The first, which 0.1.0 reads too, has one piece of each table.
_FORMAT, _FORMAT_OF_PIECES = 1, 2
#: Rows of a piece at most, roughly.
PIECE_ROWS: Final = 250_000
#: So many pieces of assignments are added before all are written anew, where fewer were written at once.
_ADDED: Final = 16
_VERSION: Final = re.compile(r"[0-9a-f]{16}")
#: Seconds for which a table that no version names may belong to one that is being published.
_GRACE: Final = 3600.0


@dataclass(frozen=True, eq=False)
class GroupModel:
    """How one kind of entity in one domain is grouped.

    Attributes:
        attributes: the groups by attribute; of users, those at their cold start.
        clusters: the users' clusters; None where there are too few users, or none are configured.
        items: what users are folded in by; None without clusters.
        assignments: schema :data:`CLUSTER_ASSIGNMENT`, empty without clusters.
        scheme: the configuration that the clusters were fitted under; another one calls for another fit.
        interactions: how many they were fitted on; many more call for another fit.
    """

    attributes: AttributeGroups
    clusters: UserClusters | None = None
    items: ItemFactors | None = None
    assignments: pa.Table = field(default_factory=CLUSTER_ASSIGNMENT.empty_table)
    scheme: str = ""
    interactions: int = 0


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A group model whose tables are too large for one process: they stay in the store, in pieces, by their names.

    Attributes:
        attributes, clusters, scheme, interactions: see :class:`GroupModel`.
        alpha, regularization: see :class:`~dare_core.grouping.clusters.ItemFactors`.
        items: columns ``item_id`` and ``factors``.
        assignments: schema :data:`CLUSTER_ASSIGNMENT`; what a later piece says of a user holds.
        whole: how many of these, the first ones, were written at once and name each user once.
    """

    attributes: AttributeGroups
    clusters: UserClusters | None = None
    scheme: str = ""
    interactions: int = 0
    alpha: float = 0.0
    regularization: float = 0.0
    items: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    whole: int = 0

    def with_added(self, pieces: Sequence[str]) -> "StoredModel":
        """The model with more assignments; those that were added last already are not added again."""
        if not pieces or self.assignments[-len(pieces) :] == tuple(pieces):
            return self
        return replace(self, assignments=(*self.assignments, *pieces))

    @property
    def is_scattered(self) -> bool:
        """Whether so many assignments were added that all of them should be written anew."""
        return len(self.assignments) - self.whole > max(_ADDED, self.whole)


class ModelTables:
    """The pieces of group models' tables.

    Args:
        location: of the models, see :attr:`GroupModelStore.files`.
    """

    def __init__(self, location: str) -> None:
        self._files = Files(location)

    def write(self, table: pa.Table) -> str:
        """Write a piece; returns its name.

        Raises:
            StorageError: it cannot be written.
        """
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        body = sink.getvalue().to_pybytes()
        digest = hashlib.sha256(body).hexdigest()
        self._files.write(f"tables/{digest}.parquet", body)
        return digest

    def read(self, digest: str) -> pa.Table:
        """A piece.

        Raises:
            FileNotFoundError: there is none.
            ValueError, ArrowException: it is damaged.
        """
        body = self._files.read(f"tables/{digest}.parquet")
        if hashlib.sha256(body).hexdigest() != digest:
            raise ValueError(f"table {digest[:16]} does not match its checksum")
        return pq.read_table(pa.BufferReader(body))


def reassigned(earlier: pa.Table, now: pa.Table) -> pa.Table:
    """``earlier`` with the users of ``now`` as they are there; both in schema :data:`CLUSTER_ASSIGNMENT`."""
    kept = earlier.filter(pc.invert(pc.is_in(earlier["entity_id"], now["entity_id"].combine_chunks())))
    return pa.concat_tables([kept, now]).sort_by("entity_id").combine_chunks()


class _DamageError(PoolError):
    """A version is not there or not whole, so that another one may serve."""


class Pointer(Protocol):
    """Which version is in force: a row of the warehouse (:mod:`dare_core.warehouse.group_models`), or a file."""

    def read(self) -> str | None:
        """The version in force; None before the first."""
        ...

    def move(self, version: str) -> None:
        """Put a version in force."""
        ...


class FilePointer:
    """A pointer in a local file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str | None:
        """See :class:`Pointer`.

        Raises:
            PoolError: the file holds no text.
        """
        try:
            return self._path.read_text("utf-8").strip()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise PoolError(
                f"{self._path} is damaged: {error}; write a name of the files in versions/ into it"
            ) from None

    def move(self, version: str) -> None:
        """See :class:`Pointer`."""
        try:
            write_atomically(self._path, version.encode())
        except OSError as error:
            raise PoolError(f"{self._path} cannot be written: {error}; the group model in force stays") from error


class GroupModelStore:
    """The versions of one kind's group model, in the folder ``grouping`` beside the versions of its pool.

    Args:
        pool_root: root of the kind's pool store: a folder, or a URL that fsspec knows.
        pointer: which version is in force; default: a file beside the versions, or for object storage in the cache.
        cache: folder for what this host keeps of object storage.
    """

    def __init__(self, pool_root: Location | str, pointer: Pointer | None = None, cache: Path = DEFAULT_CACHE) -> None:
        self.files = Files(f"{str(pool_root).rstrip('/')}/grouping", cache)
        self.tables = ModelTables(self.files.location)
        self._pointer = pointer or FilePointer(self.files.host_root / "CURRENT")

    def current(self) -> str | None:
        """The version in force; None before the first."""
        return self._pointer.read()

    def versions(self) -> list[str]:
        """Every version there is, the newest first."""
        written = {Path(name).stem: at for name, at in self.files.names("versions").items() if name.endswith(".json")}
        return sorted(written, key=lambda version: (written[version], version), reverse=True)

    def read(self) -> GroupModel | None:
        """The version in force, or where that is damaged the newest before it that is whole, with a warning.

        Returns:
            None before the first version.

        Raises:
            PoolError: no version is whole, or one is from a newer release.
        """
        stored = self.read_stored()
        return None if stored is None else self._in_memory(stored)

    def read_stored(self) -> StoredModel | None:
        """As :meth:`read`, but the tables stay where they are; they are read once, a piece at a time."""
        current = self.current()
        damage: _DamageError | None = None
        for version in [current, *(other for other in self.versions() if other != current)] if current else []:
            try:
                stored = self._stored(version)
            except _DamageError as error:
                damage = damage or error
                log.warning("group model %s cannot be used: %s", version, error)
                continue
            if damage:
                log.warning("group model %s is used instead of %s", version, current)
            return stored
        if damage:
            raise PoolError(f"{damage}; no other version is whole: delete {self.files.location} to group anew")
        return None

    def read_version(self, version: str) -> GroupModel:
        """One version.

        Raises:
            PoolError: it is not there, is damaged, or is from a newer release.
        """
        return self._in_memory(self._stored(version))

    def _stored(self, version: str) -> StoredModel:
        if not _VERSION.fullmatch(version):
            raise PoolError(f"{version!r} is not a version of a group model; versions are 16 hex digits")
        path = f"{self.files.location}/{_path(version)}"
        try:
            described = self.files.read(_path(version))
            content = json.loads(described)
            if content["format"] not in (_FORMAT, _FORMAT_OF_PIECES):
                raise PoolError(
                    f"{path}: format {content['format']} is none of the formats {_FORMAT} and {_FORMAT_OF_PIECES} "
                    "that this release reads"
                )
            if _version_of(described) != version:
                raise ValueError("its content does not match its name")
            stored = _from_content(content)
            for digest in (*stored.items, *stored.assignments):
                self.tables.read(digest)
            return stored
        except FileNotFoundError as error:
            raise _DamageError(f"group model {version}: {error.filename or error} is missing") from None
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError, pa.ArrowException) as error:
            raise _DamageError(f"group model {version}: {path} is damaged: {error}") from None

    def _in_memory(self, stored: StoredModel) -> GroupModel:
        if stored.clusters is None:
            return GroupModel(stored.attributes)
        items = pa.concat_tables([self.tables.read(digest).select(["item_id", "factors"]) for digest in stored.items])
        ids = tuple(items["item_id"].to_pylist())
        factors = ItemFactors(ids, factors_of(items["factors"]), stored.alpha, stored.regularization)
        pieces = [self.tables.read(digest).cast(CLUSTER_ASSIGNMENT) for digest in stored.assignments]
        assignments = pa.concat_tables(pieces[: stored.whole]).combine_chunks()
        for piece in pieces[stored.whole :]:
            assignments = reassigned(assignments, piece)
        return GroupModel(stored.attributes, stored.clusters, factors, assignments, stored.scheme, stored.interactions)

    def files_of(self, version: str) -> list[str]:
        """The files that a version is made of, the one that names the others last.

        Raises:
            PoolError: it is missing or damaged.
        """
        try:
            tables = json.loads(self.files.read(_path(version)))["tables"].values()
        except (FileNotFoundError, ValueError, KeyError, AttributeError) as error:
            raise PoolError(f"group model {self.files.location}/{_path(version)} cannot be read: {error}") from None
        return [*(f"tables/{digest}.parquet" for digest in tables), _path(version)]

    def publish(self, model: GroupModel) -> str:
        """Write a model and make it the version in force; the same model gives the same version.

        A crash at any point leaves the version before in force. All but the newest :data:`KEPT_VERSIONS` go.

        Raises:
            PoolError, StorageError: something cannot be written.
        """
        return self.publish_stored(self._stored_of(model))

    def publish_stored(self, stored: StoredModel) -> str:
        """As :meth:`publish`, of a model whose tables are written."""
        described = json.dumps(_content(stored), sort_keys=True, ensure_ascii=False, indent=1).encode()
        version = _version_of(described)
        self.files.write(_path(version), described)
        self._pointer.move(version)
        self._expire(version)
        return version

    def purge(self, users: Sequence[str] = (), items: Sequence[str] = ()) -> list[str]:
        """Leave no assignment of these users and no factors of these items in any version.

        A version without them is put in force, and every other one that has them, or cannot be read, is removed with
        its tables. Broken off, it is run again.

        Returns:
            The versions that were removed.

        Raises:
            PoolError: as :meth:`read` and :meth:`publish`.
        """
        stored = self.read_stored()
        if stored is not None:
            kept = {"items": ("item_id", items, stored.items), "assignments": ("entity_id", users, stored.assignments)}
            pieces = {
                name: tuple(self._without(digest, column, pa.array(ids, pa.string())) for digest in digests)
                for name, (column, ids, digests) in kept.items()
            }
            self.publish_stored(replace(stored, items=pieces["items"], assignments=pieces["assignments"]))
        held = set(self.holding(users, items))
        removed = []
        for version in self.versions():
            if version != self.current() and self._may_name(version, held):
                self.files.remove(_path(version))
                removed.append(version)
        for name in held:
            self.files.remove(name)
        return removed

    def holding(self, users: Iterable[str] = (), items: Iterable[str] = ()) -> list[str]:
        """The tables' files that name one of these users or items, or cannot be read, whichever version has them."""
        sought = {"entity_id": pa.array(users, pa.string()), "item_id": pa.array(items, pa.string())}
        return [name for name in (f"tables/{name}" for name in self.files.names("tables")) if self._names(name, sought)]

    def _names(self, name: str, sought: Mapping[str, pa.Array]) -> bool:
        try:
            table = pq.read_table(pa.BufferReader(self.files.read(name)))
        except (OSError, pa.ArrowException):
            return True
        return any(
            bool(pc.any(pc.is_in(table[column], ids)).as_py())
            for column, ids in sought.items()
            if column in table.column_names
        )

    def _may_name(self, version: str, files: set[str]) -> bool:
        try:
            tables = json.loads(self.files.read(_path(version)))["tables"].values()
        except (ValueError, KeyError, AttributeError):
            return True
        return any(f"tables/{digest}.parquet" in files for digest in tables)

    def _expire(self, current: str) -> None:
        for version in [old for old in self.versions() if old != current][KEPT_VERSIONS - 1 :]:
            self.files.remove(_path(version))
        in_use = set[str]()
        for version in self.versions():
            with suppress(ValueError, KeyError, AttributeError):
                in_use |= set(json.loads(self.files.read(_path(version)))["tables"].values())
        for name, written in self.files.names("tables").items():
            if Path(name).stem not in in_use and written < time.time() - _GRACE:
                self.files.remove(f"tables/{name}")

    def _without(self, digest: str, column: str, ids: pa.Array) -> str:
        """A piece without some rows: the very same where it has none of them."""
        table = self.tables.read(digest)
        of_others = pc.invert(pc.is_in(table[column], ids))
        return digest if pc.all(of_others).as_py() else self.tables.write(table.filter(of_others).combine_chunks())

    def _stored_of(self, model: GroupModel) -> StoredModel:
        if model.clusters is None or model.items is None:
            return StoredModel(model.attributes)
        return StoredModel(
            model.attributes,
            model.clusters,
            model.scheme,
            model.interactions,
            model.items.alpha,
            model.items.regularization,
            (self.tables.write(factors_table(model.items.ids, model.items.factors)),),
            (self.tables.write(model.assignments),),
            whole=1,
        )


def factors_table(ids: Sequence[str], factors: NDArray[np.float32]) -> pa.Table:
    """Items and their factors (``[n, rank]``) as a table of a model."""
    flat = pa.array(factors.ravel(), pa.float32())
    lists = pa.FixedSizeListArray.from_arrays(flat, factors.shape[1])
    return pa.table({"item_id": pa.array(ids, pa.string()), "factors": lists})


def factors_of(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """``[n, rank]``: factors that a table holds."""
    whole = column.combine_chunks()
    rank = column.type.list_size if pa.types.is_fixed_size_list(column.type) else -1
    flat: NDArray[np.float32] = whole.flatten().to_numpy().astype(np.float32, copy=False)
    return flat.reshape(len(column), rank if len(column) == 0 and rank > 0 else -1)


def _path(version: str) -> str:
    return f"versions/{version}.json"


def _content(stored: StoredModel) -> dict[str, Any]:
    content: dict[str, Any] = {"format": _FORMAT, "attributes": asdict(stored.attributes)}
    content |= {"scheme": stored.scheme, "interactions": stored.interactions}
    if stored.clusters is None:
        return content | {"tables": {}}
    clusters = stored.clusters
    content["clusters"] = {
        "names": clusters.names,
        "centroids": clusters.centroids.tolist(),
        "silhouette": clusters.silhouette,
        "named": clusters.named,
    }
    content["items"] = {"alpha": stored.alpha, "regularization": stored.regularization}
    if len(stored.items) == len(stored.assignments) == 1:
        return content | {"tables": {"items": stored.items[0], "assignments": stored.assignments[0]}}
    pieces = {name: getattr(stored, name) for name in ("items", "assignments")}
    tables = {f"{name}-{place:05d}": piece for name, of in pieces.items() for place, piece in enumerate(of)}
    return content | {"format": _FORMAT_OF_PIECES, "tables": tables, "whole": stored.whole}


def _from_content(content: dict[str, Any]) -> StoredModel:
    attributes = AttributeGroups(**{**content["attributes"], "names": tuple(content["attributes"]["names"])})
    if "clusters" not in content:
        return StoredModel(attributes)
    clusters, tables = content["clusters"], sorted(content["tables"].items())
    centroids = np.array(clusters["centroids"], np.float32)
    return StoredModel(
        attributes,
        UserClusters(**{**clusters, "names": tuple(clusters["names"]), "centroids": centroids}),
        content["scheme"],
        content["interactions"],
        content["items"]["alpha"],
        content["items"]["regularization"],
        tuple(piece for name, piece in tables if name.startswith("items")),
        tuple(piece for name, piece in tables if name.startswith("assignments")),
        content.get("whole", 1),
    )


def _version_of(described: bytes) -> str:
    return hashlib.sha256(described).hexdigest()[:16]
