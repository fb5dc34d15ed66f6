"""Whether everything that was in the source is in the warehouse, once, and what its bare COPY takes."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
from psycopg import sql
from sqlalchemy import Engine, text

from bench.scale.source import DOMAIN
from bench.scale.stand_ins import text_of
from dare_core.config.settings import Settings
from dare_core.knowledge.figures import finished_files
from dare_core.knowledge.shards import read_plan
from dare_core.schemas import KNOWLEDGE, KNOWLEDGE_EMBEDDING
from dare_core.storage import run_files
from dare_core.storage.locations import Location
from dare_core.warehouse.connection import connected, stream, transaction
from dare_core.warehouse.copy import copy_rows

_WRITTEN: Final = pa.schema([("request_id", pa.string()), ("text_hash", pa.string())])

#: How stages call the texts that they had in hands, those that a stopped try had included.
_TOLD: Final = {
    "planned": ("plan", "requests"),
    "written": ("generate", "texts", "resumed"),
    "embedded": ("generate", "vectors"),
    "judged": ("load", "generated"),
    "loaded": ("load", "loaded", "already_there"),
}

#: Counts of what is in one place and not in the other, each of which must be 0. The source's tables lie beside the
#: warehouse's.
_CHECKS: Final = {
    "source_and_entities": """
        SELECT count(*) FROM (
            SELECT 'item' AS kind, product_id AS entity_id, 1 AS there FROM source.shop_products
            UNION ALL SELECT 'user', customer_id, 1 FROM source.shop_customers
        ) AS source FULL JOIN (
            SELECT kind, entity_id, 1 AS there FROM knowledge.entity WHERE domain = :domain AND deleted_at IS NULL
        ) AS entity USING (kind, entity_id)
        WHERE source.there IS NULL OR entity.there IS NULL
    """,
    "source_and_valid_texts": """
        SELECT count(*) FROM (
            SELECT 'item' AS kind, product_id AS entity_id, 1 AS there FROM source.shop_products
            UNION ALL SELECT DISTINCT 'user', customer_id, 1 FROM source.shop_purchases
        ) AS source FULL JOIN (
            SELECT kind, entity_id, count(*) AS texts FROM knowledge.knowledge
            WHERE domain = :domain AND valid_to IS NULL GROUP BY 1, 2
        ) AS valid USING (kind, entity_id)
        WHERE valid.texts IS DISTINCT FROM 1 OR source.there IS NULL
    """,
    "texts_and_vectors": """
        SELECT count(*) FROM (
            SELECT request_id, e.name AS encoder, 1 AS there FROM knowledge.knowledge, knowledge.encoder AS e
            WHERE domain = :domain
        ) AS wanted FULL JOIN (
            SELECT request_id, encoder, 1 AS there FROM knowledge.knowledge_embedding WHERE domain = :domain
        ) AS vector USING (request_id, encoder)
        WHERE vector.there IS NULL OR wanted.there IS NULL
    """,
    "quarantined": "SELECT count(*) FROM knowledge.quarantine WHERE domain = :domain AND run_id = :run_id",
}


def audit(settings: Settings, run_id: str, expected: int, told: Mapping[str, int]) -> dict[str, int]:
    """What does not add up after a run, by check.

    Args:
        settings: of the run.
        run_id: of the run.
        expected: texts that the run had to write: as many entities are new or changed.
        told: texts that the run's stages had in hands; see :func:`texts_told` and :func:`copy_parts`.

    Returns:
        Counts of entities, texts or vectors that are missing or too many; 0 where all is well.
    """
    assert settings.warehouse_url is not None
    with connected(settings.warehouse_url.get_secret_value()) as engine:
        bound = {"domain": DOMAIN, "run_id": run_id}
        with engine.connect() as connection:
            found = {name: int(connection.execute(text(query), bound).scalar_one()) for name, query in _CHECKS.items()}
            stored = connection.execute(
                text("SELECT count(*) FROM knowledge.knowledge WHERE domain = :domain AND run_id = :run_id"), bound
            ).scalar_one()
        found["others_texts"] = _others_texts(engine, run_id)
    return found | {name: abs(count - expected) for name, count in {**told, "stored": stored}.items()}


def texts_told(results: Mapping[str, list[dict[str, Any]]]) -> dict[str, int]:
    """How many texts each stage had in hands, by what it returned; of a run that ended early, as far as it came."""
    return {
        name: sum(result[key] for result in results[stage] for key in keys)
        for name, (stage, *keys) in _TOLD.items()
        if stage in results
    }


def _others_texts(engine: Engine, run_id: str) -> int:
    """Texts that are not their request's."""
    query = text("SELECT request_id, text_hash FROM knowledge.knowledge WHERE domain = :domain AND run_id = :run_id")
    wrong = 0
    for batch in stream(engine, query.bindparams(domain=DOMAIN, run_id=run_id), _WRITTEN):
        for row in batch.to_pylist():
            wrong += hashlib.sha256(text_of(row["request_id"]).encode()).hexdigest() != row["text_hash"]
    return wrong


def copy_parts(settings: Settings, run_id: str) -> dict[str, int]:
    """COPY what a run loaded, part by part, into bare unlogged tables, as quickly as PostgreSQL takes it.

    Returns:
        ``copied_texts`` and ``copied_vectors``.
    """
    assert settings.warehouse_url is not None
    with connected(settings.warehouse_url.get_secret_value()) as engine:
        columns = ", ".join(KNOWLEDGE.names)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"""
                CREATE SCHEMA IF NOT EXISTS bench;
                DROP TABLE IF EXISTS bench.knowledge, bench.embedding;
                CREATE UNLOGGED TABLE bench.knowledge AS SELECT {columns} FROM knowledge.knowledge LIMIT 0;
                CREATE UNLOGGED TABLE bench.embedding AS
                    SELECT {", ".join(KNOWLEDGE_EMBEDDING.names)} FROM knowledge.knowledge_embedding LIMIT 0
            """)  # noqa: S608 - names of ours
        rows = {"knowledge": 0, "embedding": 0}
        for name, part in _parts(settings.run_dir(run_id)):
            table = run_files.read_parquet(part)
            with transaction(engine) as cursor:
                copy_rows(cursor, sql.Identifier("bench", name), table)
            rows[name] += len(table)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE bench.knowledge, bench.embedding")
    return {"copied_texts": rows["knowledge"], "copied_vectors": rows["embedding"]}


def _parts(run_dir: Location) -> Iterator[tuple[str, Location]]:
    """The files that a run's load reads, and what is in each."""
    for shard in read_plan(run_dir).shards:
        finished = finished_files(run_dir, shard.name)
        yield from (("knowledge", part) for part in finished.get("passed", ()))
        yield from (("embedding", part) for part in finished.get("vectors", ()))


def gigabytes(settings: Settings) -> dict[str, float]:
    """What a shop takes on disk.

    Returns:
        GB of ``source`` and ``knowledge``, their tables in PostgreSQL with all indexes; of ``indexes``, those of the
        latter; of ``runs``, ``pools`` and ``other``, files of the data folder.
    """
    assert settings.warehouse_url is not None
    with connected(settings.warehouse_url.get_secret_value()) as engine, engine.connect() as connection:
        row = connection.execute(
            text("""
                SELECT coalesce(sum(pg_total_relation_size(c.oid)) FILTER (WHERE n.nspname = 'source'), 0) AS source,
                    coalesce(sum(pg_total_relation_size(c.oid)) FILTER (WHERE n.nspname <> 'source'), 0) AS knowledge,
                    coalesce(sum(pg_indexes_size(c.oid)) FILTER (WHERE n.nspname <> 'source'), 0) AS indexes
                FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE c.relkind = 'r' AND n.nspname IN ('source', 'knowledge', 'partitions', 'staging')
            """)
        ).one()
    sizes = {name: int(value) for name, value in row._mapping.items()}
    for path in settings.data_dir.rglob("*"):
        if path.is_file():
            folder = path.relative_to(settings.data_dir).parts[0]
            name = folder if folder in ("runs", "pools") else "other"
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return {name: round(size / 1e9, 6) for name, size in sizes.items()}
