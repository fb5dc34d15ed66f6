"""Vectors of texts (table ``knowledge_embedding``), which go with their texts, and the indexes of them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.warehouse.connection import lock, lock_knowledge, transaction
from dare_core.warehouse.copy import copy_rows
from dare_core.warehouse.encoders import admit
from dare_core.warehouse.staging import fit, staged

#: Memory for building the index of vectors: 1.5 million of 384 dimensions fit into it.
_INDEX_MEMORY: Final = "2GB"
#: Whoever makes or removes partitions and indexes takes turns.
_INDEXES: Final = "vector indexes"


def load_vectors(engine: Engine, embeddings: pa.Table) -> int:
    """Load vectors of texts that are there, of a known encoder; those that are there stay. Returns how many are new.

    Raises:
        InputError: the rows do not fit the schema, or their encoder or its width is not known.
    """
    with transaction(engine) as cursor, staged_vectors(cursor, [embeddings]) as vectors:
        cursor.execute(f"""
            SELECT DISTINCT domain FROM {vectors} JOIN knowledge.knowledge USING (request_id)
        """)  # noqa: S608 - names of ours
        lock_knowledge(cursor, [domain for [domain] in cursor.fetchall()])
        of_texts = "(SELECT *, valid_to IS NULL AS is_valid FROM knowledge.knowledge)"
        cursor.execute(insert_vectors(of_texts, vectors, "ON CONFLICT DO NOTHING"))
        return cursor.rowcount


def replace_vectors(engine: Engine, domain: str, embeddings: pa.Table) -> int:
    """Put vectors in the place of a domain's valid ones that are in another form; returns how many were replaced.

    Vectors of texts that are there no more, or not valid any longer, are left out. Whoever replaces the same meanwhile
    waits, and then finds nothing to replace.

    Raises:
        InputError: the rows do not fit the schema, or their encoder or its width is not known.
    """
    with transaction(engine) as cursor, staged_vectors(cursor, [embeddings]) as vectors:
        lock(cursor, "entity")  # who changes entities ends texts, too, and so changes vectors
        lock_knowledge(cursor, [domain])
        cursor.execute(
            f"""
            UPDATE knowledge.knowledge_embedding AS e SET embedding = v.embedding, form = v.form
            FROM {vectors} AS v
            WHERE e.domain = %s AND (e.request_id, e.encoder) = (v.request_id, v.encoder)
                AND e.is_valid AND e.form <> v.form
            """,  # noqa: S608 - names of ours
            [domain],
        )
        return cursor.rowcount


def prepare_load(engine: Engine, items: Mapping[str, int], widths: Mapping[str, int]) -> None:
    """Make the partitions that a load needs.

    A load of more items than its domain holds takes away the index of vectors: to build it afterwards is quicker than
    to keep it up.

    Args:
        engine: the warehouse.
        items: to load, by domain.
        widths: of the vectors, by encoder; see :func:`dare_core.warehouse.encoders.admit`.

    Raises:
        InputError: see there.
    """
    with transaction(engine) as cursor:
        lock(cursor, _INDEXES)  # the first loads of two domains may come at once
        admit(cursor, widths)
        for domain, count in items.items():
            cursor.execute("SELECT knowledge.prepare_load(%s, %s)", [domain, count])


def settle_load(engine: Engine, changed: bool) -> None:
    """After a load that ``changed`` something fresh statistics; and the indexes of vectors that are not there."""
    if changed:
        with transaction(engine) as cursor:
            lock(cursor, _INDEXES)  # both hold on to several partitions
            cursor.execute("SELECT knowledge.analyse_knowledge()")
    index_vectors(engine)


def index_vectors(engine: Engine) -> int:
    """Build the indexes of vectors that are not there; returns how many. Vectors can be read meanwhile.

    Several workers of the server build one, as many as it allows, where it has the shared memory for that.
    """
    with transaction(engine) as cursor:
        lock(cursor, _INDEXES)
        cursor.execute("SELECT count(*) FROM knowledge.vector_partition WHERE NOT is_indexed")
        if cursor.fetchone() == (0,):
            return 0
        cursor.execute(f"SET LOCAL maintenance_work_mem = '{_INDEX_MEMORY}'")
        try:
            with cursor.connection.transaction():
                return _build(cursor)
        except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory):  # containers have little shared memory
            cursor.execute("SET LOCAL max_parallel_maintenance_workers = 0")
            return _build(cursor)


def _build(cursor: psycopg.Cursor[Any]) -> int:
    [built] = cursor.execute("SELECT knowledge.index_vectors()").fetchone() or (0,)
    return int(built)


def insert_vectors(texts: str, vectors: str, otherwise: str = "") -> str:
    """SQL: insert staged vectors of some texts; both are given by their tables' names or queries."""
    return f"""
        INSERT INTO knowledge.knowledge_embedding (request_id, encoder, embedding, domain, kind, is_valid, form)
        SELECT v.request_id, v.encoder, v.embedding, t.domain, t.kind, t.is_valid, v.form
        FROM {vectors} AS v JOIN {texts} AS t USING (request_id)
        {otherwise}
    """  # noqa: S608 - names of ours


def widths_of(embeddings: Iterable[pa.Table]) -> dict[str, int]:
    """The width of vectors by their encoder.

    Raises:
        InputError: the rows do not fit the schema.
    """
    return {encoder: width for table in embeddings for encoder, width in _widths(_fitted(table)).items()}


def _widths(rows: pa.Table) -> dict[str, int]:
    width = rows.schema.field("embedding").type.list_size
    return dict.fromkeys(pc.unique(rows["encoder"]).to_pylist(), width)


def _fitted(embeddings: pa.Table) -> pa.Table:
    return fit(embeddings, schemas.KNOWLEDGE_EMBEDDING, but="embedding")


@contextmanager
def staged_vectors(cursor: psycopg.Cursor[Any], embeddings: Iterable[pa.Table]) -> Iterator[str]:
    """All encoders' vectors in one staging table, whose column takes any width; a table of them is in memory.

    Raises:
        InputError: the rows do not fit the schema, or their encoder or its width is not known.
    """
    empty = schemas.KNOWLEDGE_EMBEDDING.empty_table()
    with staged(cursor, "embedding", empty, schemas.KNOWLEDGE_EMBEDDING) as name:
        cursor.execute(f"ALTER TABLE {name} ALTER COLUMN embedding TYPE vector")
        for table in embeddings:
            rows = _fitted(table)
            admit(cursor, _widths(rows))
            copy_rows(cursor, sql.SQL(name), rows)
        cursor.execute(f"ANALYZE {name} (request_id)")
        yield name
