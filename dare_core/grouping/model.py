"""Group models: what a grouping has learned, immutable, named by its content, published by moving a pointer.

<root>/versions/<version>.json      the model but for its tables
<root>/tables/<sha256>.parquet      its tables, shared by the versions that hold the same
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

_FORMAT: Final = 1
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


def reassigned(earlier: pa.Table, now: pa.Table) -> pa.Table:
    """``earlier`` with the users of ``now`` as they are there; both in schema :data:`CLUSTER_ASSIGNMENT`."""
    kept = earlier.filter(pc.invert(pc.is_in(earlier["entity_id"], now["entity_id"].combine_chunks())))
    return pa.concat_tables([kept, now]).sort_by("entity_id").combine_chunks()


def moves(earlier: pa.Table, now: pa.Table) -> dict[str, Any]:
    """How many users have another cluster than before.

    Returns:
        ``moved``, and ``moved_share`` of those who are in both tables; 0 where there are none.
    """
    both = now.join(earlier.rename_columns(["entity_id", "before"]), "entity_id", join_type="inner")
    moved = pc.sum(pc.not_equal(both["cluster"], both["before"])).as_py() or 0
    return {"moved": moved, "moved_share": round(moved / len(both), 4) if len(both) else 0.0}


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
        current = self.current()
        damage: _DamageError | None = None
        for version in [current, *(other for other in self.versions() if other != current)] if current else []:
            try:
                model = self.read_version(version)
            except _DamageError as error:
                damage = damage or error
                log.warning("group model %s cannot be used: %s", version, error)
                continue
            if damage:
                log.warning("group model %s is used instead of %s", version, current)
            return model
        if damage:
            raise PoolError(f"{damage}; no other version is whole: delete {self.files.location} to group anew")
        return None

    def read_version(self, version: str) -> GroupModel:
        """One version.

        Raises:
            PoolError: it is not there, is damaged, or is from a newer release.
        """
        if not _VERSION.fullmatch(version):
            raise PoolError(f"{version!r} is not a version of a group model; versions are 16 hex digits")
        path = f"{self.files.location}/{_path(version)}"
        try:
            described = self.files.read(_path(version))
            content = json.loads(described)
            if content["format"] != _FORMAT:
                raise PoolError(
                    f"{path}: format {content['format']} is not the format {_FORMAT} that this release reads"
                )
            if _version_of(described) != version:
                raise ValueError("its content does not match its name")
            tables = {name: self._read_table(digest) for name, digest in content["tables"].items()}
            return _from_content(content, tables)
        except FileNotFoundError as error:
            raise _DamageError(f"group model {version}: {error.filename or error} is missing") from None
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError, pa.ArrowException) as error:
            raise _DamageError(f"group model {version}: {path} is damaged: {error}") from None

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
        tables = {name: self._write_table(table) for name, table in _tables(model).items()}
        described = json.dumps(_content(model, tables), sort_keys=True, ensure_ascii=False, indent=1).encode()
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
        model = self.read()
        if model is not None:
            self.publish(_without(model, users, items))
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

    def _write_table(self, table: pa.Table) -> str:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        body = sink.getvalue().to_pybytes()
        digest = hashlib.sha256(body).hexdigest()
        self.files.write(f"tables/{digest}.parquet", body)
        return digest

    def _read_table(self, digest: str) -> pa.Table:
        body = self.files.read(f"tables/{digest}.parquet")
        if hashlib.sha256(body).hexdigest() != digest:
            raise ValueError(f"table {digest[:16]} does not match its checksum")
        return pq.read_table(pa.BufferReader(body))


def _without(model: GroupModel, users: Sequence[str], items: Sequence[str]) -> GroupModel:
    """The model without some users and items; the very same where it has none of them."""
    of_others = pc.invert(pc.is_in(model.assignments["entity_id"], pa.array(users, pa.string())))
    model = replace(model, assignments=model.assignments.filter(of_others).combine_chunks())
    if model.items is None:
        return model
    gone = set(items)
    kept = np.array([item not in gone for item in model.items.ids], np.bool_)
    ids = tuple(item for item in model.items.ids if item not in gone)
    return replace(model, items=replace(model.items, ids=ids, factors=model.items.factors[kept]))


def _path(version: str) -> str:
    return f"versions/{version}.json"


def _content(model: GroupModel, tables: dict[str, str]) -> dict[str, Any]:
    content: dict[str, Any] = {"format": _FORMAT, "attributes": asdict(model.attributes)}
    content |= {"scheme": model.scheme, "interactions": model.interactions}
    if model.clusters is not None and model.items is not None:
        clusters, items = model.clusters, model.items
        content["clusters"] = {
            "names": clusters.names,
            "centroids": clusters.centroids.tolist(),
            "silhouette": clusters.silhouette,
            "named": clusters.named,
        }
        content["items"] = {"alpha": items.alpha, "regularization": items.regularization}
    return content | {"tables": tables}


def _tables(model: GroupModel) -> dict[str, pa.Table]:
    if model.clusters is None or model.items is None:
        return {}
    rank = model.items.factors.shape[1]
    flat = pa.array(model.items.factors.ravel(), pa.float32())
    factors = pa.FixedSizeListArray.from_arrays(flat, rank)
    items = pa.table({"item_id": pa.array(model.items.ids, pa.string()), "factors": factors})
    return {"items": items, "assignments": model.assignments}


def _from_content(content: dict[str, Any], tables: dict[str, pa.Table]) -> GroupModel:
    attributes = AttributeGroups(**{**content["attributes"], "names": tuple(content["attributes"]["names"])})
    if "clusters" not in content:
        return GroupModel(attributes)
    clusters, items = content["clusters"], tables["items"]
    factors = items["factors"].combine_chunks().flatten().to_numpy().reshape(len(items), -1)
    centroids = np.array(clusters["centroids"], np.float32)
    return GroupModel(
        attributes,
        UserClusters(**{**clusters, "names": tuple(clusters["names"]), "centroids": centroids}),
        ItemFactors(tuple(items["item_id"].to_pylist()), factors, **content["items"]),
        tables["assignments"].cast(CLUSTER_ASSIGNMENT),
        content["scheme"],
        content["interactions"],
    )


def _version_of(described: bytes) -> str:
    return hashlib.sha256(described).hexdigest()[:16]
