"""The same requests give the same texts, tokens and features, however they are dealt out, batched and ordered."""

import itertools
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dare_core import models
from dare_core.config.settings import Settings, Verification
from dare_core.embedding.encoder import Encoder
from dare_core.errors import PoolError
from dare_core.knowledge import shards
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.requests import Decoding, request_id
from dare_core.knowledge.shards import Plan
from dare_core.knowledge.worker import work_off
from dare_core.pools import PoolBuilder, PoolStore
from dare_core.schemas import REQUEST
from tests.support.tiny_model import save_tiny_model

TITLES = ["Heat", "Alien", "Fargo", "Ran", "M", "Brazil", "Gandhi", "Laura", "The Third Man", "Sleeper"]
#: tokens, text and feature, by request.
Written = dict[str, tuple[list[int], str, bytes]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(Settings(device="cpu"))


def planned(settings: Settings, run_id: str, titles: Sequence[str], pool_version: str | None) -> Plan:
    """A run of two texts a shard."""
    tokenizer = models.load_tokenizer(settings)
    decoding = Decoding(settings.model, models.tokenizer_hash(tokenizer), settings.verification, 8, 0.001, 24)
    chat = ChatEncoder(tokenizer)
    rows: list[dict[str, Any]] = []
    for title in titles:
        ids = chat.encode(f"What is the film {title}?")
        identity = request_id("movies", "item", title, ids, decoding, 0)
        rows.append(
            {
                "request_id": identity, "domain": "movies", "kind": "item", "entity_id": title,
                "group_name": "Drama" if len(title) % 2 else "Comedy", "prompt": title, "prompt_token_ids": ids,
                "dropped_history": 0, "epoch": 0, "data_as_of": datetime(1998, 1, 1, tzinfo=UTC),
            }
        )  # fmt: skip
    return Plan(
        run_id=run_id,
        domain="movies",
        framework="kar",
        decoding=decoding,
        started_at=datetime.now(UTC),
        shards=shards.write_shards(
            settings.run_dir(run_id), "item", pa.Table.from_pylist(rows, REQUEST).to_batches(), 2, pool_version
        ),
        funnel={},
        estimate=Estimate(tokens=0, seconds=None, cost=None, tokens_per_second=None, basis="nothing"),
    )


def work(settings: Settings, plan: Plan, first: int, step: int) -> None:
    """One worker's shards."""
    work_off(settings, plan, plan.shards[first::step])


def written(settings: Settings, plan: Plan, encoder: Encoder) -> Written:
    texts, failed = shards.read_staged(settings.run_dir(plan.run_id), [shard.name for shard in plan.shards])
    assert len(failed) == 0
    vectors = encoder.encode(texts["text"].to_pylist()).flatten().to_numpy().reshape(len(texts), -1)
    return {
        row["request_id"]: (row["token_ids"], row["text"], vector.tobytes())
        for row, vector in zip(texts.to_pylist(), vectors, strict=True)
    }


def pool_of(settings: Settings, plan: Plan) -> str:
    """A pool of what a run wrote; its texts are cut, so that drafts from it are taken up and left again."""
    texts, _ = shards.read_staged(settings.run_dir(plan.run_id), [shard.name for shard in plan.shards])
    pieces = pa.array([tokens[3:17] for tokens in texts["token_ids"].to_pylist()], pa.list_(pa.int32()))
    store = PoolStore(settings.pool_dir("movies", "item"))
    table = pa.table({"group": texts["group_name"], "token_ids": pieces})
    return PoolBuilder(store, settings.model, plan.decoding.tokenizer_hash, 258).build(table).version


def ways(mode: Verification, model: Path, tmp_path: Path, encoder: Encoder) -> list[Written]:
    """The same requests by batches of 1, 3 and 8, in two orders, and dealt out to 1, 2 and 4 workers."""
    usual = Settings(data_dir=tmp_path, model=str(model), verification=mode, deterministic=mode == "relaxed")
    seed = planned(usual, "seed", TITLES, None)
    work_off(usual, seed, seed.shards)
    version = pool_of(usual, seed)
    made = []
    numbers = itertools.count()
    for batch_size, titles, workers in (
        (1, TITLES, 1), (3, TITLES[::-1], 1), (8, TITLES, 1), (8, sorted(TITLES), 2), (3, TITLES, 4),
    ):  # fmt: skip
        settings = usual.model_copy(update={"batch_size": batch_size})
        plan = planned(settings, f"run-{next(numbers)}", titles, version)
        for worker in range(workers):
            work(settings, plan, worker, workers)
        made.append(written(settings, plan, encoder))
    return made


def test_strict_texts_depend_neither_on_order_nor_batch_nor_workers(
    model: Path, tmp_path: Path, encoder: Encoder
) -> None:
    first, *others = ways("strict", model, tmp_path, encoder)
    assert len(first) == len(TITLES)
    assert all(other == first for other in others)


def test_relaxed_texts_depend_on_them_no_more_where_they_are_made_deterministic(
    model: Path, tmp_path: Path, encoder: Encoder
) -> None:
    first, *others = ways("relaxed", model, tmp_path, encoder)
    assert len(first) == len(TITLES)
    assert all(other == first for other in others)
    run = shards.read_staged(tmp_path / "runs" / "run-0", [f"item-{number:04d}" for number in range(5)])[0]
    assert sum(run["relaxed"].to_pylist()) > 0, "nothing was relaxed: strict would do"


def test_relaxed_texts_that_draft_from_each_other_do_depend_on_the_order(
    model: Path, tmp_path: Path, encoder: Encoder
) -> None:
    settings = Settings(data_dir=tmp_path, model=str(model), verification="relaxed", draft_budget="fixed", batch_size=1)
    made = []
    for run_id, titles in (("one", TITLES), ("other", TITLES[::-1])):
        plan = planned(settings, run_id, titles, None)
        work_off(settings, plan, plan.shards)
        made.append(written(settings, plan, encoder))
    assert made[0] != made[1], "the tests above could not fail"


def test_workers_at_once_write_what_one_after_the_other_writes(model: Path, tmp_path: Path, encoder: Encoder) -> None:
    settings = Settings(data_dir=tmp_path, model=str(model), verification="relaxed", deterministic=True, batch_size=3)
    alone = planned(settings, "alone", TITLES[:4], None)
    work(settings, alone, 0, 1)
    plan = planned(settings, "together", TITLES[:4], None)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        for done in [processes.submit(work, settings, plan, worker, 2) for worker in range(2)]:
            done.result()
    assert written(settings, plan, encoder) == written(settings, alone, encoder)


def test_a_damaged_pool_is_not_replaced_by_another_where_texts_would_depend_on_it(model: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, model=str(model), verification="relaxed", deterministic=True)
    seed = planned(settings, "seed", TITLES[:2], None)
    work_off(settings, seed, seed.shards)
    pool_of(settings, seed)
    more = planned(settings, "more", TITLES[2:4], None)
    work_off(settings, more, more.shards)
    version = pool_of(settings, more)
    manifest = PoolStore(settings.pool_dir("movies", "item")).manifest(version)
    for part in manifest.groups.values():
        for entry in part.segments:
            (settings.pool_dir("movies", "item") / "segments" / entry.sha256).write_bytes(b"damaged")
    plan = planned(settings, "run", TITLES[:2], version)
    with pytest.raises(PoolError, match="damaged"):
        work_off(settings, plan, plan.shards)
    work_off(settings.model_copy(update={"deterministic": False}), plan, plan.shards)


def test_determinism_is_no_part_of_what_identifies_a_request(model: Path, tmp_path: Path) -> None:
    plain = Settings(data_dir=tmp_path, model=str(model))
    ids = [
        shards.read_requests(settings.run_dir(run_id), "item-0000")["request_id"].to_pylist()
        for run_id, settings in (("a", plain), ("b", plain.model_copy(update={"deterministic": True})))
        if planned(settings, run_id, TITLES[:2], None)
    ]
    assert ids[0] == ids[1]
    assert "deterministic" not in json.dumps(planned(plain, "c", TITLES[:1], None).model_dump(mode="json"))
