"""``dare bench query``: nearest neighbours, the point-in-time join, and whether a run's texts are all accounted for."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SecretStr

from bench.warehouse.made import BEGIN, Made
from bench.warehouse.scratch import Scratch, scratch_database
from dare_core import schemas
from dare_core.config.settings import Settings
from dare_core.features.dataset import InteractionDataset
from dare_core.features.history import read_features
from dare_core.knowledge import shards
from dare_core.schemas import KINDS, TIME, Kind
from dare_core.sources.importer import described, import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.stages import order
from dare_core.stages.request import RunRequest
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.knowledge import load_knowledge

OnProgress = Callable[[str], None]

_K: Final = 10
_NEAREST_QUERIES: Final = 500


def bench_query(settings: Settings, rows: int, interactions: int, on_progress: OnProgress) -> dict[str, Any]:
    """Ask a domain of so many items, join so many interactions, and run the pipeline on a few films.

    Returns:
        ``nearest_ms_p95`` of ``features.similar_items`` for ten, and its ``recall_at_10`` against all distances;
        ``asof_s``, from the warehouse to joined vectors, and ``asof_wrong``, interactions for which it, or
        ``asof_sql_s``'s join in SQL, differs from a look at every version; ``unaccounted`` texts of ``accounted``.
    """
    with scratch_database(settings) as scratch:
        made = Made(scratch, seed=1)
        figures: dict[str, Any] = {"query_rows": rows, **_nearest(scratch, made, rows)}
        on_progress(f"nearest: {figures}")
        figures |= _point_in_time(scratch, made, interactions)
        on_progress(f"point in time: {figures}")
    with scratch_database(settings) as empty:
        return figures | _account(settings, empty)


def _nearest(scratch: Scratch, made: Made, rows: int) -> dict[str, Any]:
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


def _point_in_time(scratch: Scratch, made: Made, count: int) -> dict[str, Any]:
    """Four versions of 4,000 items and 2,000 users over 400 days, and interactions spread over all of them."""
    random = np.random.default_rng(3)
    domain = "versions"
    sizes: dict[Kind, int] = {"item": 4000, "user": 2000}
    for version in range(4):
        for kind, entities in sizes.items():
            days = random.integers(100 * version, 100 * version + 100, size=entities)
            moments = pa.array([BEGIN + timedelta(days=int(day)) for day in days], TIME)
            texts = made.texts(entities, domain, kind, data_as_of=moments)
            ids = pc.binary_join_element_wise(texts["request_id"].cast(pa.string()), str(version), "-")
            texts = texts.set_column(0, texts.schema.field(0), ids.cast(pa.string()))
            load_knowledge(scratch.engine, texts, made.vectors(texts))
    interactions = pa.table(
        {
            "user_id": pc.cast(pa.array(random.integers(2100, size=count)), pa.string()),
            "item_id": pc.cast(pa.array(random.integers(4200, size=count)), pa.string()),
            "event_timestamp": pa.array(
                [BEGIN + timedelta(hours=int(hours)) for hours in random.integers(-48, 24 * 500, size=count)], TIME
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


def _account(settings: Settings, scratch: Scratch) -> dict[str, Any]:
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
