"""Vectors of texts (table ``knowledge_embedding``), which go with their texts, and the indexes of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import pyarrow as pa
from psycopg import sql
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.warehouse.connection import lock, transaction
from dare_core.warehouse.copy import copy_rows
from dare_core.warehouse.encoders import admit
from dare_core.warehouse.staging import fit, staged

#: Memory for building the index of vectors: 1.5 million of 384 dimensions fit into it.
_INDEX_MEMORY: Final = "2GB"


def load_vectors(engine: Engine, embeddings: pa.Table) -> int:
    """Load vectors of texts that are there, of a known encoder; those that are there stay. Returns how many are new.

    Raises:
        InputError: the rows do not fit the schema, or their encoder or its width is not known.
    """
    with transaction(engine) as cursor, staged_vectors(cursor, [embeddings]) as vectors:
        lock(cursor, "knowledge")
        admit(cursor, [embeddings])
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
        for what in ("entity", "knowledge"):  # both end texts, and so change vectors
            lock(cursor, what)
        admit(cursor, [embeddings])
        cursor.execute(
            f"""
            UPDATE knowledge.knowledge_embedding AS e SET embedding = v.embedding, form = v.form FROM {vectors} AS v
            WHERE e.domain = %s AND (e.request_id, e.encoder) = (v.request_id, v.encoder)
                AND e.is_valid AND e.form <> v.form
            """,  # noqa: S608 - names of ours
            [domain],
        )
        return cursor.rowcount


def index_vectors(engine: Engine) -> int:
    """Build the indexes of vectors that are not there; returns how many. Vectors can be read meanwhile."""
    with transaction(engine) as cursor:
        lock(cursor, "knowledge")
        cursor.execute("SELECT count(*) FROM knowledge.vector_partition WHERE NOT is_indexed")
        if cursor.fetchone() == (0,):
            return 0
        cursor.execute(f"SET LOCAL maintenance_work_mem = '{_INDEX_MEMORY}'")
        # Workers would need that memory as shared memory, of which containers have little.
        cursor.execute("SET LOCAL max_parallel_maintenance_workers = 0")
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


@contextmanager
def staged_vectors(cursor: psycopg.Cursor[Any], embeddings: Sequence[pa.Table]) -> Iterator[str]:
    """All encoders' vectors in one staging table, whose column takes any width."""
    empty = schemas.KNOWLEDGE_EMBEDDING.empty_table()
    with staged(cursor, "embedding", empty, schemas.KNOWLEDGE_EMBEDDING) as name:
        cursor.execute(f"ALTER TABLE {name} ALTER COLUMN embedding TYPE vector")
        for table in embeddings:
            copy_rows(cursor, sql.SQL(name), fit(table, schemas.KNOWLEDGE_EMBEDDING, but="embedding"))
        cursor.execute(f"ANALYZE {name} (request_id)")
        yield name
