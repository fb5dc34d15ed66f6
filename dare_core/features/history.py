"""Every version of the features of a domain's items or users, out of the warehouse."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine

from dare_core.errors import InputError
from dare_core.schemas import KINDS, TIME, Kind
from dare_core.storage.atomic import appearing
from dare_core.warehouse.encoders import stored

_ROWS_PER_BATCH: Final = 4096


def feature_schema(kind: Kind, width: int) -> pa.Schema:
    """Columns of a feature table, as feature stores' offline stores read them.

    ``event_timestamp`` is the first moment at which a row may be joined: a microsecond after the newest event that its
    prompt could see, so that a join that takes rows of *its own moment or before*, as feature stores do, never shows a
    label its own event. ``created_timestamp`` is when the text was written, ``valid_to`` when it was replaced or its
    entity was gone; ``form`` says what the vector is made of. Key: (<kind>_id, event_timestamp, created_timestamp).
    """
    return pa.schema(
        [
            pa.field(f"{kind}_id", pa.string(), nullable=False),
            pa.field("event_timestamp", TIME, nullable=False),
            pa.field("created_timestamp", TIME, nullable=False),
            pa.field("valid_to", TIME),
            pa.field("group_name", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.field("element", pa.float32()), width), nullable=False),
            pa.field("request_id", pa.string(), nullable=False),
            pa.field("form", pa.string(), nullable=False),
        ],
        metadata={"entity_key": f"{kind}_id", "event_time": "event_timestamp"},
    )


def read_features(engine: Engine, domain: str, kind: Kind) -> pa.Table:
    """All of :func:`stream_features` in memory."""
    schema = _schema(engine, domain, kind)
    return pa.Table.from_batches(stream_features(engine, domain, kind, schema), schema)


def export_features(engine: Engine, domain: str, out: Path) -> dict[str, int]:
    """Write ``item.parquet`` and ``user.parquet`` of schema :func:`feature_schema`, each whole or not at all.

    Returns:
        Rows by kind.

    Raises:
        InputError: the domain has no features.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for kind in KINDS:
        schema = _schema(engine, domain, kind)
        counts[kind] = 0
        with (
            appearing(out / f"{kind}.parquet") as scratch,
            pq.ParquetWriter(scratch, schema, compression="zstd") as writer,
        ):
            for batch in stream_features(engine, domain, kind, schema):
                writer.write_batch(batch)
                counts[kind] += len(batch)
    return counts


def stream_features(engine: Engine, domain: str, kind: Kind, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Versions with a vector by the encoder in force, replaced ones too, in no order; memory holds a batch."""
    query = f"""
        SELECT {kind}_id, data_as_of + interval '1 microsecond', available_at, valid_to, group_name, text,
            vector_send(embedding), request_id, form
        FROM features.{kind}_history WHERE domain = %s AND embedding IS NOT NULL
    """  # noqa: S608 - a kind of ours
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        with driver.cursor("features", binary=True) as cursor:
            cursor.execute(query, [domain])
            while rows := cursor.fetchmany(_ROWS_PER_BATCH):
                yield pa.record_batch(
                    [
                        _vectors(values, field.type) if field.name == "embedding" else pa.array(values, field.type)
                        for values, field in zip(zip(*rows, strict=True), schema, strict=True)
                    ],
                    schema=schema,
                )


def _schema(engine: Engine, domain: str, kind: Kind) -> pa.Schema:
    with engine.connect() as connection:
        known = connection.exec_driver_sql(
            "SELECT 1 FROM knowledge.knowledge_embedding WHERE domain = %s LIMIT 1", (domain,)
        ).first()
    if known is None:
        raise InputError(f"the warehouse has no features of domain {domain!r}; run the pipeline for it")
    return feature_schema(kind, stored(engine)[0].width)


def _vectors(sent: tuple[Any, ...], kind: pa.DataType) -> pa.FixedSizeListArray:
    """Vectors as pgvector sends them: two 16-bit numbers, then the values, all big-endian."""
    rows = np.frombuffer(b"".join(sent), np.uint8).reshape(len(sent), -1)
    values = np.ascontiguousarray(rows[:, 4:]).view(">f4").astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind)
