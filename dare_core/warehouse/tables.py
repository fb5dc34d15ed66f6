"""The warehouse's tables for SQLAlchemy, derived from the Arrow schemas.

The database gets its tables from the migrations in ``sql/migrations``; a test asserts that both are the same.
"""

from typing import Any, Final

import pyarrow as pa
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    desc,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.types import TypeEngine

from dare_core import schemas

SCHEMA: Final = "knowledge"
#: Where the parts of KNOWLEDGE and KNOWLEDGE_EMBEDDING lie.
PARTITIONS: Final = "partitions"

_SCALARS: Final[dict[pa.DataType, TypeEngine[Any]]] = {
    pa.string(): Text(),
    pa.int32(): Integer(),
    pa.int64(): BigInteger(),
    pa.float64(): Double(),
    pa.bool_(): Boolean(),
    schemas.TIME: TIMESTAMP(timezone=True),
}


def column_type(arrow: pa.DataType) -> TypeEngine[Any]:
    """The column type that holds values of an Arrow type.

    Raises:
        KeyError: the schemas use no such type.
    """
    if pa.types.is_fixed_size_list(arrow):
        vector: TypeEngine[Any] = VECTOR(arrow.list_size)
        return vector
    if pa.types.is_list(arrow):
        return ARRAY(_SCALARS[arrow.value_type])
    return _SCALARS[arrow]


def _columns(schema: pa.Schema, key: tuple[str, ...], json: tuple[str, ...] = ()) -> list[Column[Any]]:
    return [
        Column(
            field.name,
            JSONB() if field.name in json else column_type(field.type),
            primary_key=field.name in key,
            nullable=field.nullable,
        )
        for field in schema
    ]


metadata: Final = MetaData(schema=SCHEMA)

_OF_ENTITY: Final = ("domain", "kind", "entity_id")

ENTITY: Final = Table(
    "entity",
    metadata,
    *_columns(schemas.ENTITY, key=_OF_ENTITY, json=("attributes",)),
    Column("updated_at", TIMESTAMP(timezone=True), nullable=False, server_default=text("now()")),
    Column("deleted_at", TIMESTAMP(timezone=True)),
    Column("content", Text, Computed("md5(attributes::text)", persisted=True), nullable=False),
    Column("profile", Text, Computed("md5((attributes - 'history')::text)", persisted=True), nullable=False),
)

WATERMARK: Final = Table("watermark", metadata, *_columns(schemas.WATERMARK, key=("domain", "kind")))

RENDERING: Final = Table(
    "rendering",
    metadata,
    *_columns(schemas.RENDERING, key=_OF_ENTITY),
    ForeignKeyConstraint(_OF_ENTITY, [ENTITY.c[name] for name in _OF_ENTITY], ondelete="CASCADE"),
)

KNOWLEDGE: Final = Table(
    "knowledge",
    metadata,
    *_columns(schemas.KNOWLEDGE, key=("request_id", "domain")),
    Column("valid_from", TIMESTAMP(timezone=True), nullable=False),
    Column("valid_to", TIMESTAMP(timezone=True)),
    Index("knowledge_one_valid", *_OF_ENTITY, unique=True, postgresql_where=text("valid_to IS NULL")),
    Index("knowledge_point_in_time", *_OF_ENTITY, desc("data_as_of")),
    postgresql_partition_by="LIST (domain)",
)

ENCODER: Final = Table(
    "encoder",
    metadata,
    Column("name", Text, primary_key=True),
    Column("width", Integer, nullable=False),
    Column("in_force", Boolean, nullable=False),
    Column("number", Integer, nullable=False, unique=True),
    Index("encoder_one_in_force", "in_force", unique=True, postgresql_where=text("in_force")),
)

#: Vectors of any width: those of one domain and encoder have a partition, with an index, to themselves. They come with
#: their texts, in one statement's join, and go with them by a trigger.
KNOWLEDGE_EMBEDDING: Final = Table(
    "knowledge_embedding",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("encoder", Text, primary_key=True),
    Column("embedding", VECTOR(), nullable=False),
    Column("domain", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("is_valid", Boolean, nullable=False),
    Column("form", Text, nullable=False),
    postgresql_partition_by="LIST (domain)",
)

POOL_VERSION: Final = Table(
    "pool_version",
    metadata,
    *_columns(schemas.POOL_VERSION, key=("domain", "kind", "version")),
    Index("pool_version_one_current", "domain", "kind", unique=True, postgresql_where=text("is_current")),
)

POOL_PIN: Final = Table(
    "pool_pin",
    metadata,
    *_columns(schemas.POOL_PIN, key=("domain", "kind", "holder")),
    ForeignKeyConstraint(
        ["domain", "kind", "version"], [POOL_VERSION.c.domain, POOL_VERSION.c.kind, POOL_VERSION.c.version]
    ),
)

GROUP_MODEL: Final = Table("group_model", metadata, *_columns(schemas.GROUP_MODEL, key=("domain", "kind")))

GENERATION_RUN: Final = Table(
    "generation_run", metadata, *_columns(schemas.GENERATION_RUN, key=("run_id",), json=("params", "plan", "measured"))
)

RUN_LEASE: Final = Table("run_lease", metadata, *_columns(schemas.RUN_LEASE, key=("run_id",), json=("params",)))

QUARANTINE: Final = Table(
    "quarantine",
    metadata,
    *_columns(schemas.QUARANTINE, key=("request_id", "rule")),
    Column("released_at", TIMESTAMP(timezone=True)),
    Column("released_by", Text),
    Index("quarantine_entity", *_OF_ENTITY),
    Index("quarantine_newest", "quarantined_at"),
)

QUARANTINED_TEXT: Final = Table("quarantined_text", metadata, *_columns(schemas.KNOWLEDGE, key=("request_id",)))

EVALUATION: Final = Table(
    "evaluation", metadata, *_columns(schemas.EVALUATION, key=("domain", "evaluated_at"), json=("result",))
)

INTERACTION_SOURCE: Final = Table(
    "interaction_source", metadata, *_columns(schemas.INTERACTION_SOURCE, key=("domain",))
)

FORGOTTEN: Final = Table("forgotten", metadata, *_columns(schemas.FORGOTTEN, key=("domain", "kind", "entity")))

#: Tables of rows about entities; what refers to another comes before it.
OF_ENTITIES: Final = tuple(table.name for table in reversed(metadata.sorted_tables) if "entity_id" in table.columns)
