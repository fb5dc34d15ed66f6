"""What the warehouse takes: loading, nearest neighbours, the point-in-time join; and whether no text gets lost.

Everything happens in a database of its own on the warehouse's server, which is dropped afterwards. The texts are made
up of MovieLens' titles and genres. A vector is the mean of two films', by the settings' encoder, with noise: as many as
wanted, and as near to each other as texts about films are.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import Engine

from dare_airflow.local.processes import exit_on_signals
from dare_core import schemas
from dare_core.config.settings import Settings
from dare_core.embedding.encoder import Encoder
from dare_core.features.dataset import InteractionDataset
from dare_core.features.history import read_features
from dare_core.knowledge import shards
from dare_core.schemas import KINDS, TIME, Kind
from dare_core.sources.importer import described, import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.stages import order
from dare_core.stages.request import RunRequest
from dare_core.warehouse.connection import connect, transaction
from dare_core.warehouse.copy import copy_rows
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.knowledge import load_knowledge, merge_knowledge
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import database_url, serving
from dare_core.warehouse.tables import KNOWLEDGE, KNOWLEDGE_EMBEDDING
from dare_core.warehouse.vectors import index_vectors

OnProgress = Callable[[str], None]

_BEGIN: Final = datetime(2020, 1, 1, tzinfo=UTC)
_K: Final = 10
_NEAREST_QUERIES: Final = 500
_SLOW_ROWS: Final = 2000  # of the contenders that take a statement, or more, for a row
_NOISE: Final = 0.02  # in each dimension; a film's own values are 0.05 on average


def bench_load(settings: Settings, rows: int, repeats: int, on_progress: OnProgress) -> dict[str, Any]:
    """Load texts with vectors into an empty domain, ``repeats`` times, in turn with the others.

    Returns:
        ``load_vs_copy``: seconds of the load, ANALYZE included, over those of a bare COPY of the same rows into tables
        without key, index or constraint. ``index_build_s``: of the vectors' index, which the load left for afterwards.
        ``rows_per_s`` by contender: ``load`` with its index, ``to_sql`` and ``executemany`` (pandas and SQLAlchemy,
        into bare tables, ``slow_rows`` rows).
    """
    with _scratch(settings) as scratch:
        made = _Made(scratch, seed=0)
        load, copy = [], []
        for repeat in range(repeats):
            texts = made.texts(rows, f"load_{repeat}", "item")
            vectors = made.vectors(texts)
            copy.append(_timed_copy(scratch.engine, texts, vectors))
            load.append(_timed(scratch.engine, lambda: _merge(scratch.engine, texts, vectors)))  # noqa: B023
            on_progress(f"{rows} rows: COPY {copy[-1]:.1f} s, load {load[-1]:.1f} s")
            if repeat + 1 < repeats:  # the last one's is indexed
                _forget(scratch.engine)
        build = _timed(scratch.engine, lambda: index_vectors(scratch.engine))
        slow = made.texts(_SLOW_ROWS, "slow", "item")
        frames = _frames(slow, made.vectors(slow))
        to_sql = _timed_to_sql(scratch.url, frames, None)
        executemany = _timed_to_sql(scratch.url, frames, _execute_many)
        on_progress(f"{_SLOW_ROWS} rows: to_sql {to_sql:.1f} s, executemany {executemany:.1f} s")
        return {
            "load_rows": rows,
            "load_repeats": repeats,
            "load_vs_copy": round(median(load) / median(copy), 3),
            "load_s": round(median(load), 2),
            "copy_s": round(median(copy), 2),
            "index_build_s": round(build, 2),
            "rows_per_s": {
                "copy": round(rows / median(copy)),
                "load": round(rows / median(load)),
                "load_and_index": round(rows / (median(load) + build)),
                "to_sql": round(_SLOW_ROWS / to_sql),
                "executemany": round(_SLOW_ROWS / executemany),
            },
            "slow_rows": _SLOW_ROWS,
        }


def bench_query(settings: Settings, rows: int, interactions: int, on_progress: OnProgress) -> dict[str, Any]:
    """Ask a domain of so many items, join so many interactions, and run the pipeline on a few films.

    Returns:
        ``nearest_ms_p95`` of ``features.similar_items`` for ten, and its ``recall_at_10`` against all distances;
        ``asof_s``, from the warehouse to joined vectors, and ``asof_wrong``, interactions for which it, or
        ``asof_sql_s``'s join in SQL, differs from a look at every version; ``unaccounted`` texts of ``accounted``.
    """
    with _scratch(settings) as scratch:
        made = _Made(scratch, seed=1)
        figures: dict[str, Any] = {"query_rows": rows, **_nearest(scratch, made, rows)}
        on_progress(f"nearest: {figures}")
        figures |= _point_in_time(scratch, made, interactions)
        on_progress(f"point in time: {figures}")
    with _scratch(settings) as empty:
        return figures | _account(settings, empty)


class _Scratch:
    """A database of the benchmark's own."""

    def __init__(self, settings: Settings, url: str, engine: Engine) -> None:
        self.settings, self.url, self.engine = settings, url, engine


@contextmanager
def _scratch(settings: Settings) -> Iterator[_Scratch]:
    with exit_on_signals(), serving(settings) as server:
        name = f"dare_bench_{os.getpid()}"
        url = database_url(server, name)
        engine = connect(url)
        try:
            upgrade(engine)
            with engine.begin() as connection:
                connection.exec_driver_sql("CREATE SCHEMA bench")
            yield _Scratch(settings, url, engine)
        finally:
            engine.dispose()
            administrator = connect(server)
            with administrator.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
            administrator.dispose()


class _Made:
    """Texts and vectors, from the films."""

    def __init__(self, scratch: _Scratch, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        films = [f"{row['title']}, {', '.join(row['genres'])}" for row in read_movielens()["items"].to_pylist()]
        encoder = Encoder.load(scratch.settings)
        self._encoder = encoder.name
        self._films = encoder.encode(films).flatten().to_numpy().reshape(len(films), -1)
        picked = self._random.integers(len(films), size=(4000, 16))
        #: About 700 characters each, as the pipeline's are.
        self._texts = pa.array(
            ["Who likes this film also likes " + "; ".join(films[at] for at in row) for row in picked]
        )

    def texts(self, rows: int, domain: str, kind: Kind, **others: Any) -> pa.Table:
        """Rows of schema KNOWLEDGE, of entities 0, 1, ..., or of what ``others`` say by column."""
        ids = pc.cast(pa.array(np.arange(rows)), pa.string())
        texts = self._texts.take(pa.array(self._random.integers(len(self._texts), size=rows)))
        tokens = pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32) * 160),
            pa.array(self._random.integers(49_152, size=rows * 160, dtype=np.int32)),
        )
        constant = {
            "domain": domain, "kind": kind, "group_name": "1990s", "dropped_history": 0, "epoch": 0,
            "data_as_of": _BEGIN, "text_hash": "0" * 32, "finish_reason": "stop", "framework": "kar",
            "model": "made up", "tokenizer_hash": "0" * 32, "verification": "relaxed", "top_k": 2, "min_prob": 0.1,
            "max_new_tokens": 160, "pool_version": None, "run_id": "bench", "available_at": _BEGIN,
            "prompt_tokens": 160, "new_tokens": 160, "steps": 60, "drafted": 400, "accepted": 100, "relaxed": 5,
            "seconds": 2.0,
        }  # fmt: skip
        columns: dict[str, Any] = {
            "request_id": pc.binary_join_element_wise(f"{domain}-{kind}", ids, "-"),
            "entity_id": ids,
            "prompt": texts,
            "prompt_token_ids": tokens,
            "text": texts,
            "token_ids": tokens,
        } | others
        return pa.table(
            [
                columns[field.name]
                if field.name in columns
                else pa.repeat(pa.scalar(constant[field.name], field.type), rows)
                for field in schemas.KNOWLEDGE
            ],
            schema=schemas.KNOWLEDGE,
        )

    def vectors(self, texts: pa.Table) -> pa.Table:
        """A unit vector for each text, in schema KNOWLEDGE_EMBEDDING."""
        rows, width = len(texts), self._films.shape[1]
        pairs = self._random.integers(len(self._films), size=(2, rows))
        share = self._random.random((rows, 1), np.float32)
        values = share * self._films[pairs[0]] + (1 - share) * self._films[pairs[1]]
        values += self._random.standard_normal((rows, width), np.float32) * np.float32(_NOISE)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
        names = pa.repeat(self._encoder, rows)
        return pa.table([texts["request_id"], names, embedding], schema=schemas.knowledge_embedding(width))


def _timed(engine: Engine, work: Callable[[], Any]) -> float:
    """Seconds, of a server that has nothing left to write from before."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CHECKPOINT")
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _merge(engine: Engine, texts: pa.Table, vectors: pa.Table) -> None:
    with transaction(engine) as cursor:
        merge_knowledge(cursor, texts, vectors)


def _timed_copy(engine: Engine, texts: pa.Table, vectors: pa.Table) -> float:
    _make_bare(engine)

    def copy() -> None:
        with transaction(engine) as cursor:
            copy_rows(cursor, sql.SQL("bench.knowledge"), texts)
            copy_rows(cursor, sql.SQL("bench.embedding"), vectors)

    return _timed(engine, copy)


def _forget(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE knowledge.knowledge, knowledge.knowledge_embedding")
        connection.exec_driver_sql("SELECT knowledge.index_vectors()")


def _make_bare(engine: Engine) -> None:
    columns = ", ".join(schemas.KNOWLEDGE.names)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"""
            DROP TABLE IF EXISTS bench.knowledge, bench.embedding;
            CREATE TABLE bench.knowledge AS SELECT {columns} FROM knowledge.knowledge LIMIT 0;
            CREATE TABLE bench.embedding AS
                SELECT request_id, encoder, embedding FROM knowledge.knowledge_embedding LIMIT 0
        """)  # noqa: S608 - names of ours


def _frames(texts: pa.Table, vectors: pa.Table) -> dict[str, pd.DataFrame]:
    return {"knowledge": pd.DataFrame(texts.to_pylist()), "embedding": vectors.to_pandas()}


def _timed_to_sql(url: str, frames: dict[str, pd.DataFrame], method: Any) -> float:
    engine = connect(url)
    _make_bare(engine)
    types = {column.name: column.type for table in (KNOWLEDGE, KNOWLEDGE_EMBEDDING) for column in table.columns}

    def write() -> None:
        for name, frame in frames.items():
            of_frame = {column: types[column] for column in frame.columns}
            frame.to_sql(name, engine, schema="bench", if_exists="append", index=False, dtype=of_frame, method=method)

    seconds = _timed(engine, write)
    engine.dispose()
    return seconds


def _execute_many(table: Any, connection: Any, keys: list[str], rows: Any) -> None:
    names = ", ".join(keys)
    marks = ", ".join(["%s"] * len(keys))
    with connection.connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO bench.{table.name} ({names}) VALUES ({marks})", list(rows))  # noqa: S608


def _nearest(scratch: _Scratch, made: _Made, rows: int) -> dict[str, Any]:
    texts = made.texts(rows, "movies", "item")
    vectors = made.vectors(texts)
    upsert_entities(scratch.engine, _entities(texts))
    load_knowledge(scratch.engine, texts, vectors)
    matrix = vectors["embedding"].combine_chunks().flatten().to_numpy().reshape(rows, -1)
    asked = np.random.default_rng(2).choice(rows, size=min(_NEAREST_QUERIES, rows), replace=False)
    seconds: list[float] = []
    hits = 0
    with scratch.engine.connect() as connection:
        cursor = connection.connection.cursor()
        for item in asked[:20]:  # what a session learns first: the catalogue, and the index's first pages
            cursor.execute("SELECT item FROM features.similar_items(%s, %s)", [str(item), _K])
        for item in asked:
            started = time.perf_counter()
            found = cursor.execute("SELECT item FROM features.similar_items(%s, %s)", [str(item), _K]).fetchall()
            seconds.append(time.perf_counter() - started)
            near = matrix @ matrix[item]
            near[item] = -1
            hits += len({int(row[0]) for row in found} & set(np.argpartition(-near, _K)[:_K].tolist()))
    return {
        "nearest_queries": len(asked),
        "nearest_ms_p50": round(float(np.percentile(seconds, 50)) * 1000, 2),
        "nearest_ms_p95": round(float(np.percentile(seconds, 95)) * 1000, 2),
        "recall_at_10": round(hits / (len(asked) * _K), 4),
    }


def _entities(texts: pa.Table) -> pa.Table:
    rows = len(texts)
    titles = pc.binary_join_element_wise('{"title": "Film', texts["entity_id"], '"}', " ")
    given = {"attributes": titles.cast(pa.string()), "events": pa.repeat(pa.scalar(1, pa.int64()), rows)}
    return pa.table(
        [given.get(name, texts[name] if name in texts.column_names else None) for name in schemas.ENTITY.names],
        schema=schemas.ENTITY,
    )


def _point_in_time(scratch: _Scratch, made: _Made, count: int) -> dict[str, Any]:
    """Four versions of 4,000 items and 2,000 users over 400 days, and interactions spread over all of them."""
    random = np.random.default_rng(3)
    domain = "versions"
    sizes: dict[Kind, int] = {"item": 4000, "user": 2000}
    for version in range(4):
        for kind, entities in sizes.items():
            days = random.integers(100 * version, 100 * version + 100, size=entities)
            moments = pa.array([_BEGIN + timedelta(days=int(day)) for day in days], TIME)
            texts = made.texts(entities, domain, kind, data_as_of=moments)
            ids = pc.binary_join_element_wise(texts["request_id"].cast(pa.string()), str(version), "-")
            texts = texts.set_column(0, texts.schema.field(0), ids.cast(pa.string()))
            load_knowledge(scratch.engine, texts, made.vectors(texts))
    interactions = pa.table(
        {
            "user_id": pc.cast(pa.array(random.integers(2100, size=count)), pa.string()),
            "item_id": pc.cast(pa.array(random.integers(4200, size=count)), pa.string()),
            "event_timestamp": pa.array(
                [_BEGIN + timedelta(hours=int(hours)) for hours in random.integers(-48, 24 * 500, size=count)], TIME
            ),
            "label": random.random(count),
            "row": np.arange(count),
        }
    )
    started = time.perf_counter()
    features = {kind: read_features(scratch.engine, domain, kind) for kind in KINDS}
    joined = InteractionDataset(interactions, features["item"], features["user"])
    joined.batch(np.arange(count))
    seconds = time.perf_counter() - started
    import_tables(scratch.engine, {"interactions": described(interactions, "bench", ["row"])}, schema="bench")
    started = time.perf_counter()
    with scratch.engine.connect() as connection:
        in_sql = connection.exec_driver_sql(_JOIN_IN_SQL, (domain, domain)).all()
    sql_seconds = time.perf_counter() - started
    wrong = 0
    for at, kind in enumerate(sizes, start=1):
        answers = [row[at] for row in in_sql]
        known = features[kind]["request_id"].to_pylist()
        answers_here = [known[row] if row >= 0 else None for row in joined.rows[kind].tolist()]
        expected = _slowly(features[kind].drop(["embedding", "text"]).to_pylist(), kind, interactions)
        wrong += sum(not a == b == c for a, b, c in zip(answers_here, answers, expected, strict=True))
    return {
        "asof_interactions": count,
        "asof_versions": sum(len(table) for table in features.values()),
        "asof_s": round(seconds, 2),
        "asof_sql_s": round(sql_seconds, 2),
        "asof_wrong": wrong,
    }


_JOIN_IN_SQL: Final = """
    SELECT r.row, i.request_id, u.request_id
    FROM bench.interactions AS r
    LEFT JOIN LATERAL (
        SELECT request_id FROM features.item_history
        WHERE domain = %s AND item_id = r.item_id AND data_as_of < r.event_timestamp
            AND (valid_to IS NULL OR valid_to > r.event_timestamp)
        ORDER BY data_as_of DESC, available_at DESC, request_id LIMIT 1
    ) AS i ON true
    LEFT JOIN LATERAL (
        SELECT request_id FROM features.user_history
        WHERE domain = %s AND user_id = r.user_id AND data_as_of < r.event_timestamp
            AND (valid_to IS NULL OR valid_to > r.event_timestamp)
        ORDER BY data_as_of DESC, available_at DESC, request_id LIMIT 1
    ) AS u ON true
    ORDER BY r.row
"""


def _slowly(versions: list[dict[str, Any]], kind: Kind, interactions: pa.Table) -> list[str | None]:
    """The reference: for each interaction, a look at every version of its entity."""
    of_entity: dict[str, list[dict[str, Any]]] = {}
    for version in versions:
        of_entity.setdefault(version[f"{kind}_id"], []).append(version)
    found: list[str | None] = []
    for entity, moment in zip(
        interactions[f"{kind}_id"].to_pylist(), interactions["event_timestamp"].to_pylist(), strict=True
    ):
        seen: dict[str, Any] | None = None
        for version in of_entity.get(entity, []):
            over = version["valid_to"] is not None and version["valid_to"] <= moment
            if version["event_timestamp"] > moment or over:
                continue
            if seen is None or version["event_timestamp"] > seen["event_timestamp"]:
                seen = version
        found.append(seen["request_id"] if seen else None)
    return found


def _account(settings: Settings, scratch: _Scratch) -> dict[str, Any]:
    """A run of the whole pipeline on a few films and users: what became of each text that it staged?"""
    with TemporaryDirectory(prefix="dare-bench-") as folder:
        of_run = settings.model_copy(
            update={
                "data_dir": Path(folder),
                "warehouse_url": SecretStr(scratch.url),
                "probe_share": 0.0,
                "max_failing_share": 1.0,
            }
        )
        import_tables(scratch.engine, read_movielens())
        request = RunRequest(run_id="bench", item_limit=24, user_limit=8, max_new_tokens=48)
        order.run(of_run, request)
        run_dir = of_run.run_dir(request.run_id)
        staged, failed = shards.read_staged(run_dir, [shard.name for shard in shards.read_plan(run_dir).shards])
    generated = {*staged["request_id"].to_pylist(), *failed["request_id"].to_pylist()}
    with scratch.engine.connect() as connection:
        kept = set(
            connection.exec_driver_sql(
                "SELECT request_id FROM knowledge.knowledge UNION SELECT request_id FROM knowledge.quarantine"
            ).scalars()
        )
    return {"accounted": len(generated), "unaccounted": len(generated - kept)}
