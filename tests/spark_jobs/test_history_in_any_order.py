"""From source tables to a training set joined point in time: the same whatever the order of the runs."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.features.dataset import InteractionDataset
from dare_core.features.history import read_features
from dare_core.knowledge import shards
from dare_core.schemas import EMBEDDING_WIDTH, ENTITY, KINDS, KNOWLEDGE, KNOWLEDGE_EMBEDDING, PULLED, TIME
from dare_core.stages import group, plan, pull
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse.entity_staging import EntityStaging, copy_entities
from dare_core.warehouse.knowledge import load_knowledge
from spark_jobs import pull as pull_program
from tests.spark_jobs.conftest import RATINGS
from tests.support.rendered import requests_of
from tests.support.tiny_model import save_tiny_model

EARLY, LATE = datetime(2024, 1, 5, 12, tzinfo=UTC), datetime(2024, 1, 30, tzinfo=UTC)


@pytest.fixture
def settings(
    settings: Settings,
    spark: SparkSession,
    shop: Any,
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """The shop's domain; Spark's programs run in the tests' session, and grouping is left to Python."""

    def pulled(settings: Settings, program: str, arguments: list[str], url: str) -> dict[str, int]:
        given = pull_program._arguments(arguments)
        return pull_program.pull(spark, shop.domain, given.kinds, dict(given.since), given.as_of, given.out, url)

    def grouped(settings: Settings, program: str, arguments: list[str], url: str) -> dict[str, int]:
        source, run_id = Path(arguments[arguments.index("--in") + 1]), arguments[arguments.index("--run") + 1]
        counts = {}
        for kind in KINDS:
            rows = [{**row, "group_name": "all"} for row in run_files.read_table(source / kind, PULLED).to_pylist()]
            [table] = EntityStaging(run_id, kind).create(engine, 1)
            counts[kind] = copy_entities(url, table, pa.Table.from_pylist(rows, ENTITY).to_batches())
        return counts

    monkeypatch.setattr(pull, "submit", pulled)
    monkeypatch.setattr(group, "submit", grouped)
    model = save_tiny_model(tmp_path / "model")
    changes = {"config_dir": tmp_path, "model": str(model), "max_new_tokens": 8, "warehouse_url": shop.url}
    return Settings.model_validate(settings.model_dump() | changes)


def refresh(settings: Settings, engine: Engine, run_id: str, as_of: datetime) -> int:
    """A run whose texts are their prompts; how many it wrote."""
    request = RunRequest(run_id=run_id, domain="shop", as_of=as_of)
    for stage in (pull, group, plan):
        stage.run(settings, request)
    planned = shards.read_plan(settings.run_dir(run_id))
    rows = [
        row | vars(planned.decoding) | {
            "text": row["prompt"], "token_ids": [1], "text_hash": "h", "finish_reason": "stop", "framework": "kar",
            "pool_version": None, "run_id": run_id, "available_at": datetime.now(UTC), "prompt_tokens": 1,
            "new_tokens": 1, "steps": 1, "drafted": 0, "accepted": 0, "relaxed": 0, "seconds": 1.0,
        }
        for row in requests_of(settings, request)
    ]  # fmt: skip
    ids = [row["request_id"] for row in rows]
    vectors = [
        np.random.default_rng(int(hashlib.md5(each.encode()).hexdigest()[:8], 16)).random(EMBEDDING_WIDTH, np.float32)
        for each in ids
    ]
    values = pa.FixedSizeListArray.from_arrays(np.concatenate([*vectors, []]), EMBEDDING_WIDTH).cast(
        KNOWLEDGE_EMBEDDING.field("embedding").type
    )
    named = [["minilm"] * len(ids), ["answer"] * len(ids)]
    embeddings = pa.table([ids, *named, values], schema=KNOWLEDGE_EMBEDDING)
    load_knowledge(engine, pa.Table.from_pylist(rows, KNOWLEDGE), embeddings)
    return len(rows)


def training_set(engine: Engine) -> list[tuple[Any, ...]]:
    """Of each event, which features of the item and of the user it sees."""
    events = [*RATINGS, (1, 3, 1, LATE)]
    columns = {
        "user_id": pa.array([str(event[0]) for event in events]),
        "item_id": pa.array([str(event[1]) for event in events]),
        "event_timestamp": pa.array([event[3] for event in events], TIME),
        "label": pa.array([1.0] * len(events)),
    }
    features = {kind: read_features(engine, "shop", kind) for kind in KINDS}
    joined = InteractionDataset(pa.table(columns), features["item"], features["user"])
    seen = joined.batch(list(range(len(joined))))
    return [
        (
            seen["item"][at].sum().item(),
            bool(seen["has_item"][at]),
            seen["user"][at].sum().item(),
            bool(seen["has_user"][at]),
        )
        for at in range(len(joined))
    ]


@pytest.mark.full
def test_runs_of_an_earlier_and_a_later_moment_make_one_training_set_in_either_order(
    settings: Settings, engine: Engine
) -> None:
    made, valid = [], []
    for moments in ((EARLY, LATE), (LATE, EARLY)):
        for as_of in moments:
            assert refresh(settings, engine, f"{moments[0].day}-{as_of.day}", as_of)
        assert not refresh(settings, engine, f"{moments[0].day}-again", EARLY), "all of it is there"
        made.append(training_set(engine))
        with engine.begin() as connection:
            texts = connection.exec_driver_sql("SELECT request_id, valid_to IS NULL FROM knowledge.knowledge")
            valid.append(sorted(map(tuple, texts)))
            connection.exec_driver_sql(
                "TRUNCATE knowledge.knowledge, knowledge.knowledge_embedding, knowledge.watermark, knowledge.entity "
                "CASCADE"
            )
    assert made[0] == made[1]
    assert valid[0] == valid[1]
    of_users = [sees for (_, _, _, sees), event in zip(made[1], [*RATINGS, (1,)], strict=True) if event[0] in (1, 4)]
    assert of_users == [False, False, False, True, True, False, True]
