"""What keeps all tables in order: statistics and indexes."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, text

from dare_core.warehouse.tables import PARTITIONS, SCHEMA, metadata

#: An index is bloated when it takes more bytes than its entries should, by this factor, and more than this many.
_BLOAT: Final = 3.0
_BLOAT_BYTES: Final = 64 * 2**20


def analyse(engine: Engine) -> dict[str, int]:
    """Fresh statistics for PostgreSQL's planner; returns its estimate of each table's rows."""
    tables = [table.name for table in metadata.sorted_tables]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE " + ", ".join(f"{SCHEMA}.{table}" for table in tables))
        rows = connection.execute(
            text("""
                SELECT relname, greatest(reltuples, 0)::bigint AS rows FROM pg_class
                WHERE relnamespace = to_regnamespace(:schema) AND relname = ANY(:tables) ORDER BY relname
            """),
            {"schema": SCHEMA, "tables": tables},
        )
        return {row.relname: row.rows for row in rows}


@dataclass(frozen=True)
class IndexHealth:
    """What is wrong with indexes, by name with schema.

    Attributes:
        indexes: how many there are.
        missing: those that the migrations created and that are gone.
        invalid: those that PostgreSQL does not use, since their building broke off.
        bloated: those of more bytes than their entries explain.
    """

    indexes: int
    missing: list[str]
    invalid: list[str]
    bloated: list[str]


def index_health(engine: Engine) -> IndexHealth:
    """Look at every index of the warehouse; sizes are judged by the statistics of the last ANALYZE."""
    wanted = {f"{SCHEMA}.{index.name}" for table in metadata.sorted_tables for index in table.indexes}
    wanted |= {f"{SCHEMA}.{table.name}_pkey" for table in metadata.sorted_tables}
    query = text("""
        SELECT format('%I.%I', nspname, index.relname) AS name, pg_index.indisvalid AND pg_index.indisready AS usable,
            pg_relation_size(index.oid) AS bytes,
            greatest(index.reltuples, 0) * (
                -- 20: a btree entry's own bytes; 400: an HNSW entry's neighbours, and 2 of each dimension
                CASE method.amname
                    WHEN 'hnsw' THEN 400 + 2 * (SELECT atttypmod FROM pg_attribute WHERE attrelid = index.oid)
                    ELSE 20
                END + coalesce(sum(statistics.avg_width), 0)
            ) AS explained
        FROM pg_index
        JOIN pg_class AS index ON index.oid = pg_index.indexrelid
        JOIN pg_am AS method ON method.oid = index.relam
        JOIN pg_class AS indexed ON indexed.oid = pg_index.indrelid
        JOIN pg_namespace AS namespace ON namespace.oid = indexed.relnamespace
        LEFT JOIN pg_attribute AS attribute
            ON attribute.attrelid = indexed.oid AND attribute.attnum = ANY(pg_index.indkey)
        LEFT JOIN pg_stats AS statistics
            ON statistics.schemaname = nspname AND statistics.tablename = indexed.relname
            AND statistics.attname = attribute.attname
        WHERE nspname = ANY(:schemas)
        GROUP BY index.oid, nspname, index.relname, usable, index.reltuples, method.amname
        ORDER BY name
    """)
    with engine.connect() as connection:
        found = connection.execute(query, {"schemas": [SCHEMA, PARTITIONS]}).all()
        vectors = connection.exec_driver_sql("SELECT index_name FROM knowledge.vector_partition").scalars()
        wanted |= {f"{PARTITIONS}.{index}" for index in vectors}
    return IndexHealth(
        indexes=len(found),
        missing=sorted(wanted - {row.name for row in found}),
        invalid=[row.name for row in found if not row.usable],
        bloated=[row.name for row in found if row.bytes > max(_BLOAT_BYTES, _BLOAT * row.explained)],
    )
