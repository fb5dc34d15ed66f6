"""Small pools for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dare_core.pools import Pool, PoolBuilder, PoolManifest, PoolStore

VOCABULARY = 100
Row = tuple[str, list[int]] | tuple[str, list[int], str]


def texts(*rows: Row) -> pa.Table:
    """A table of texts."""
    return pa.table(
        {
            "group": pa.array([row[0] for row in rows], pa.string()),
            "token_ids": pa.array([row[1] for row in rows], pa.list_(pa.int32())),
            "entity_id": pa.array([row[2] if len(row) > 2 else None for row in rows], pa.string()),
        }
    )


SOME = texts(("Drama", [1, 2, 3]), ("Komödie ☂/..", [4, 5]), ("Drama", [1, 2, 9]))
OTHER = texts(("Drama", [7, 8]), ("Western", [6]))


def build(pools: PoolStore, rows: pa.Table = SOME, **options: Any) -> PoolManifest:
    """Make a version of texts."""
    return PoolBuilder(pools, "m", "h", VOCABULARY, **options).build(rows)


def add(pools: PoolStore, rows: pa.Table = OTHER, **options: Any) -> PoolManifest:
    """Add texts to the version in force."""
    return PoolBuilder(pools, "m", "h", VOCABULARY, **options).add(rows)


def held(pool: Pool, group: str) -> list[list[int]]:
    """A group's texts, sorted."""
    found = []
    for segment in pool.group(group):
        ends = np.cumsum(segment.rows["length"] + 1)[:-1]
        found += [part[1:].tolist() for part in np.split(segment.index.tokens, ends)]
    return sorted(found)


def files(root: Path) -> set[str]:
    """The files below a folder, by their paths from it."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
