"""``dare bench load``: rows into the warehouse, beside a bare COPY of them and what pandas and SQLAlchemy would do."""

from collections.abc import Callable
from statistics import median
from typing import Any, Final

import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
from psycopg import sql
from sqlalchemy import Engine

from bench.warehouse.made import Made
from bench.warehouse.scratch import scratch_database, timed
from dare_core import schemas
from dare_core.config.settings import Settings
from dare_core.warehouse.connection import connect, transaction
from dare_core.warehouse.copy import copy_rows
from dare_core.warehouse.knowledge import merge_knowledge
from dare_core.warehouse.tables import KNOWLEDGE, KNOWLEDGE_EMBEDDING
from dare_core.warehouse.vectors import index_vectors, prepare_load, widths_of

OnProgress = Callable[[str], None]

_SLOW_ROWS: Final = 2000  # of the contenders that take a statement, or more, for a row


def bench_load(settings: Settings, rows: int, repeats: int, on_progress: OnProgress) -> dict[str, Any]:
    """Load texts with vectors into an empty domain, ``repeats`` times, in turn with the others.

    Returns:
        ``load_vs_copy``: seconds of the load, ANALYZE included, over those of a bare COPY of the same rows into tables
        without key, index or constraint. ``index_build_s``: of the vectors' index, which the load left for afterwards.
        ``rows_per_s`` by contender: ``load`` with its index, ``to_sql`` and ``executemany`` (pandas and SQLAlchemy,
        into bare tables, ``slow_rows`` rows).
    """
    with scratch_database(settings) as scratch:
        made = Made(scratch, seed=0)
        load, copy = [], []
        for repeat in range(repeats):
            texts = made.texts(rows, f"load_{repeat}", "item")
            vectors = made.vectors(texts)
            copy.append(_timed_copy(scratch.engine, texts, vectors))
            load.append(timed(scratch.engine, lambda: _merge(scratch.engine, texts, vectors)))  # noqa: B023
            on_progress(f"{rows} rows: COPY {copy[-1]:.1f} s, load {load[-1]:.1f} s")
            if repeat + 1 < repeats:  # the last one's is indexed
                _forget(scratch.engine)
        build = timed(scratch.engine, lambda: index_vectors(scratch.engine))
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


def _merge(engine: Engine, texts: pa.Table, vectors: pa.Table) -> None:
    prepare_load(engine, {domain: len(texts) for domain in texts["domain"].unique().to_pylist()}, widths_of([vectors]))
    with transaction(engine) as cursor:
        merge_knowledge(cursor, [texts], [vectors])
        cursor.execute("SELECT knowledge.analyse_knowledge()")


def _timed_copy(engine: Engine, texts: pa.Table, vectors: pa.Table) -> float:
    _make_bare(engine)

    def copy() -> None:
        with transaction(engine) as cursor:
            copy_rows(cursor, sql.SQL("bench.knowledge"), texts)
            copy_rows(cursor, sql.SQL("bench.embedding"), vectors)

    return timed(engine, copy)


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
                SELECT request_id, encoder, form, embedding FROM knowledge.knowledge_embedding LIMIT 0
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

    seconds = timed(engine, write)
    engine.dispose()
    return seconds


def _execute_many(table: Any, connection: Any, keys: list[str], rows: Any) -> None:
    names = ", ".join(keys)
    marks = ", ".join(["%s"] * len(keys))
    with connection.connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO bench.{table.name} ({names}) VALUES ({marks})", list(rows))  # noqa: S608
