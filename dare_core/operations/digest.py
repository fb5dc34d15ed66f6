"""What the warehouse, the pools and the staged files hold, boiled down to hashes that are equal for equal work.

Two installations that did the same work have one digest, and so has one that was broken off and went on. Names and
moments that no two runs share are left out: run ids, versions' names, when something was written and how long it took.
Runs are comparable when they saw the same of the source, that is under one ``as_of``.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
from sqlalchemy import Column, ColumnElement, Engine, Table, Text, cast, func, select
from sqlalchemy.dialects.postgresql import TIMESTAMP

from dare_core.config.settings import Settings
from dare_core.errors import InputError, PoolError
from dare_core.knowledge import figures, shards
from dare_core.pools import PoolStore
from dare_core.pools.index import START
from dare_core.schemas import KINDS, Kind
from dare_core.storage.atomic import is_scratch
from dare_core.storage.locations import Location, exists, is_folder, matching
from dare_core.storage.run_files import read_parquet, table_files
from dare_core.warehouse import tables
from dare_core.warehouse.pools import pool_store

#: Columns that tell who did a piece of work and how fast, or where its files lie, and nothing of what it made.
_PASSING: Final = frozenset(
    {"run_id", "holder", "pool_version", "location", "report", "plan", "measured", "steps", "drafted", "accepted"}
    | {"relaxed", "seconds", "result", "evaluated_at", "params", "owner"}
)
#: Moments that are taken from the source; of all others only whether they are there counts.
_MOMENTS_OF_SOURCE: Final = frozenset({"data_as_of", "pulled_to"})
#: Versions of pools are named by their texts' days, too.
_OF_TABLE: Final[dict[str, frozenset[str]]] = {
    "pool_version": frozenset({"version"}),
    "pool_pin": frozenset({"version"}),
}
#: What a row of a staged file is named by, as far as it has it.
_KEYS: Final = ("domain", "kind", "entity_id", "request_id", "rule", "encoder")
_ROWS_AT_ONCE: Final = 10_000
#: Tables of a run's shard.
_Read = Callable[[Location, str], Iterable[pa.Table]]


@dataclass(frozen=True)
class Row:
    """A row of a part: hashes of what names it and of all that it says."""

    key: bytes
    content: bytes


@dataclass(frozen=True)
class PartDigest:
    """How many rows a part has, and the hash of them all, whatever their order."""

    rows: int
    hash: str


def digest(settings: Settings, engine: Engine) -> dict[str, PartDigest]:
    """The digest of every part that holds anything.

    Raises:
        PoolError: a pool in force is damaged.
        WarehouseError: the warehouse has no tables.
    """
    digests = {}
    for name, rows in parts(settings, engine):
        count, total = 0, 0
        for row in rows:
            count += 1
            total += int.from_bytes(row.content, "big")
        if count:
            digests[name] = PartDigest(count, f"{total % 2**128:032x}")
    return digests


def parts(settings: Settings, engine: Engine) -> Iterator[tuple[str, Iterator[Row]]]:
    """Every part's name and rows: tables of the warehouse, the pools in force, the files of runs."""
    for table in tables.metadata.sorted_tables:
        yield f"warehouse.{table.name}", _table_rows(engine, table)
    for domain, kind in _pools(engine):
        yield f"pool.{domain}.{kind}", _pool_rows(pool_store(settings, engine, domain, kind))
    runs = [path for path in matching(settings.runs_dir) if not is_scratch(path.name)]
    for stage in ("pulled", "grouped"):
        for kind in KINDS:
            yield f"staged.{stage}.{kind}", _rows(table for run in runs for table in _folder(run / stage / kind))
    planned = [(run, shard.name) for run in runs if exists(run / "plan.json") for shard in shards.read_plan(run).shards]
    for name, read in _OF_SHARDS.items():
        yield f"staged.{name}", _rows(table for run, shard in planned for table in read(run, shard))


def unfinished(settings: Settings, engine: Engine) -> list[str]:
    """What is neither done nor undone, in words; none in an installation that keeps its promises.

    Such are shards whose manifest says more than their parts hold, pool versions whose files are not all there, texts
    whose validity ends before it begins, and valid texts without a vector of the encoder in force.
    """
    found = [problem for run in matching(settings.runs_dir) for problem in _broken_shards(run)]
    for domain, kind in _pools(engine):
        store = pool_store(settings, engine, domain, kind)
        for version in store.register.versions():
            try:
                store.check(store.manifest(version), thoroughly=True)
            except PoolError as error:
                found.append(str(error))
    return [*found, *_broken_texts(engine)]


def _finished(what: str) -> _Read:
    return lambda run, shard: map(read_parquet, figures.finished_files(run, shard).get(what, ()))


def _due(run_dir: Location, shard: str) -> Iterator[pa.Table]:
    if exists(path := shards.shard_path(run_dir, shard)):
        yield read_parquet(path)


def _requests(run_dir: Location, shard: str) -> Iterable[pa.Table]:
    with suppress(InputError):  # it is not rendered, or missing
        return shards.requests(run_dir, shard)
    return ()


#: What later stages read of a shard, by what it holds.
_OF_SHARDS: Final[dict[str, _Read]] = {
    "due": _due,
    "requests": _requests,
    "texts": lambda run, shard: [shards.read_staged(run, [shard])[0]],
    "failed": lambda run, shard: [shards.read_staged(run, [shard])[1]],
    **{what: _finished(what) for what in ("passed", "refused", "vectors")},
}


def _folder(folder: Location) -> Iterator[pa.Table]:
    if is_folder(folder):
        yield from map(read_parquet, table_files(folder))


def _broken_shards(run_dir: Location) -> Iterator[str]:
    if is_scratch(run_dir.name) or not exists(run_dir / "plan.json"):
        return
    for shard in shards.read_plan(run_dir).shards:
        try:
            rendered = shards.is_rendered(run_dir, shard.name)
        except InputError:
            yield f"{run_dir}: the plan names shard {shard.name}, whose file is missing"
            continue
        asked = Counter[str]()
        for piece in shards.requests(run_dir, shard.name) if rendered else ():
            asked.update(piece["request_id"].to_pylist())
        written, failed = shards.read_staged(run_dir, [shard.name])
        answered = Counter([*written["request_id"].to_pylist(), *failed["request_id"].to_pylist()])
        if shards.read_manifest(run_dir / "staged" / shard.name) is not None and asked - answered:
            yield f"{run_dir}: shard {shard.name} has a manifest, but lacks {(asked - answered).total()} answers"
        if answered - asked:
            yield f"{run_dir}: shard {shard.name} holds {(answered - asked).total()} answers too many"


def _broken_texts(engine: Engine) -> Iterator[str]:
    knowledge, vectors, encoder = tables.KNOWLEDGE, tables.KNOWLEDGE_EMBEDDING, tables.ENCODER
    backwards = select(func.count()).where(knowledge.c.valid_to < knowledge.c.valid_from)
    embedded = select(vectors.c.request_id).where(
        vectors.c.request_id == knowledge.c.request_id,
        vectors.c.encoder.in_(select(encoder.c.name).where(encoder.c.in_force)),
    )
    bare = select(func.count()).where(knowledge.c.valid_to.is_(None), ~embedded.exists())
    with engine.connect() as connection:
        for query, what in (
            (backwards.select_from(knowledge), "texts are valid until before they are valid"),
            (bare.select_from(knowledge), "valid texts have no vector of the encoder in force"),
        ):
            if count := connection.execute(query).scalar_one():
                yield f"{count} {what}"


def _table_rows(engine: Engine, table: Table) -> Iterator[Row]:
    left_out = _PASSING | _OF_TABLE.get(table.name, frozenset())
    named = [column for column in table.primary_key.columns if column.name not in left_out]
    said = [
        column.is_not(None) if _is_passing_moment(column) else column
        for column in table.columns
        if column.name not in left_out
    ]
    with engine.connect().execution_options(yield_per=_ROWS_AT_ONCE) as connection:
        # Hashed by the database, so that vectors need not leave it.
        for key, content in connection.execute(select(_hashed(named), _hashed(said)).select_from(table)):
            yield Row(bytes.fromhex(key), bytes.fromhex(content))


def _is_passing_moment(column: Column[Any]) -> bool:
    return isinstance(column.type, TIMESTAMP) and column.name not in _MOMENTS_OF_SOURCE


def _hashed(values: Iterable[ColumnElement[Any]]) -> ColumnElement[str]:
    return func.md5(cast(func.jsonb_build_array(*(cast(value, Text) for value in values)), Text))


def _pools(engine: Engine) -> list[tuple[str, Kind]]:
    pool = tables.POOL_VERSION
    with engine.connect() as connection:
        query = select(pool.c.domain, pool.c.kind).distinct().order_by(pool.c.domain, pool.c.kind)
        return [(row.domain, row.kind) for row in connection.execute(query)]


def _pool_rows(store: PoolStore) -> Iterator[Row]:
    """A row for every text of every group, the global one's included; what files they lie in does not count."""
    versions = store.register.versions()
    for group, part in store.manifest(versions[0]).groups.items() if versions else ():
        for entry in part.segments:
            segment = store.segment(entry)
            ends = np.flatnonzero(segment.index.tokens == START)[1:]
            for row, tokens in zip(segment.rows, np.split(segment.index.tokens, ends), strict=True):
                key = [group, int(row["text"]), int(row["entity"])]
                yield Row(_hash(key), _hash([*key, tokens.tolist()]))


def _rows(tables_read: Iterable[pa.Table]) -> Iterator[Row]:
    for table in tables_read:
        for row in table.to_pylist():
            said = {
                name: value is not None if isinstance(value, datetime) and name not in _MOMENTS_OF_SOURCE else value
                for name, value in row.items()
                if name not in _PASSING
            }
            yield Row(_hash([row[name] for name in _KEYS if name in row]), _hash(said))


def _hash(said: Any) -> bytes:
    return hashlib.md5(json.dumps(said, default=str).encode(), usedforsecurity=False).digest()
