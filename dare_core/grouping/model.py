"""Group models on disk: what a grouping has learned, immutable, named by its content, published by an atomic rename.

<root>/CURRENT                      the version in force
<root>/versions/<version>.json      the model but for its tables
<root>/tables/<sha256>.parquet      its tables, shared by the versions that hold the same
"""

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dare_core.errors import PoolError
from dare_core.grouping.attributes import AttributeGroups
from dare_core.grouping.clusters import ItemFactors, UserClusters

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


class GroupModelStore:
    """The versions of one kind's group model, in the folder ``grouping`` beside the versions of its pool.

    Args:
        pool_root: root of the kind's pool store.
    """

    def __init__(self, pool_root: Path) -> None:
        self.root = pool_root / "grouping"

    def current(self) -> str | None:
        """The version in force; None before the first."""
        with suppress(FileNotFoundError):
            return (self.root / "CURRENT").read_text("utf-8").strip()
        return None

    def versions(self) -> list[str]:
        """Every version there is, the newest first."""
        written = {path.stem: path.stat().st_mtime_ns for path in (self.root / "versions").glob("*.json")}
        return sorted(written, key=lambda version: (written[version], version), reverse=True)

    def read(self, version: str | None = None) -> GroupModel | None:
        """A version (default: the current one; None before the first).

        Raises:
            PoolError: the version is not there, is damaged, or is from a newer release.
        """
        version = version or self.current()
        if version is None:
            return None
        if not _VERSION.fullmatch(version):
            raise PoolError(f"{version!r} is not a version of a group model; versions are 16 hex digits")
        path = self.root / "versions" / f"{version}.json"
        try:
            described = path.read_bytes()
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
            raise PoolError(f"group model {version}: {error.filename} is missing; {self._remedy()}") from None
        except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise PoolError(f"group model {version}: {path} is damaged: {error}; {self._remedy()}") from None

    def publish(self, model: GroupModel) -> str:
        """Write a model and make it the current version; the same model gives the same version.

        A crash at any point leaves the version before in force. All but the newest :data:`KEPT_VERSIONS` go.
        """
        (self.root / "versions").mkdir(parents=True, exist_ok=True)
        (self.root / "tables").mkdir(exist_ok=True)
        tables = {name: self._write_table(table) for name, table in _tables(model).items()}
        described = json.dumps(_content(model, tables), sort_keys=True, ensure_ascii=False, indent=1).encode()
        version = _version_of(described)
        _write(self.root / "versions" / f"{version}.json", described)
        _write(self.root / "CURRENT", version.encode())
        self._expire(version)
        return version

    def _expire(self, current: str) -> None:
        for version in [old for old in self.versions() if old != current][KEPT_VERSIONS - 1 :]:
            (self.root / "versions" / f"{version}.json").unlink(missing_ok=True)
        in_use = set[str]()
        for path in (self.root / "versions").glob("*.json"):
            with suppress(ValueError, KeyError, AttributeError):
                in_use |= set(json.loads(path.read_bytes())["tables"].values())
        for path in (self.root / "tables").glob("*.parquet"):
            with suppress(FileNotFoundError):
                if path.stem not in in_use and path.stat().st_mtime < time.time() - _GRACE:
                    path.unlink()

    def _write_table(self, table: pa.Table) -> str:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        body = sink.getvalue().to_pybytes()
        digest = hashlib.sha256(body).hexdigest()
        _write(self.root / "tables" / f"{digest}.parquet", body)
        return digest

    def _read_table(self, digest: str) -> pa.Table:
        body = (self.root / "tables" / f"{digest}.parquet").read_bytes()
        if hashlib.sha256(body).hexdigest() != digest:
            raise ValueError(f"table {digest[:16]} does not match its checksum")
        return pq.read_table(pa.BufferReader(body))

    def _remedy(self) -> str:
        others = [version for version in self.versions() if version != self.current()]
        earlier = f"write {others[0]} into {self.root / 'CURRENT'} to go back, or " if others else ""
        return f"{earlier}delete {self.root / 'CURRENT'} to group anew"


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


def _write(path: Path, body: bytes) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
