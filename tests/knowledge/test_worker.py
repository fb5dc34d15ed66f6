import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.errors import ModelError
from dare_core.knowledge import shards, worker
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.requests import Decoding, request_id
from dare_core.knowledge.shards import Plan
from dare_core.pools import PoolBuilder, PoolStore
from dare_core.schemas import REQUEST
from tests.support.tiny_model import save_tiny_model

NEW_TOKENS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def settings(tmp_path: Path, model: Path) -> Settings:
    return Settings(data_dir=tmp_path, model=str(model), verification="strict", batch_size=2, checkpoint_seconds=1e-6)


def planned(
    settings: Settings,
    titles: list[str],
    run_id: str = "run",
    pool_version: str | None = None,
    precision: str = "fp32",
) -> Plan:
    """A run of one shard that asks about some titles; None of them fails but one whose prompt is too long."""
    tokenizer = models.load_tokenizer(settings)
    decoding = Decoding(settings.model, models.tokenizer_hash(tokenizer), "strict", 2, 0.1, NEW_TOKENS, precision)
    encoder = ChatEncoder(tokenizer)
    rows = []
    for title in titles:
        ids = encoder.encode(title)
        rows.append(
            {
                "request_id": request_id("movies", "item", title[:20], ids, decoding, 0),
                "domain": "movies",
                "kind": "item",
                "entity_id": title[:20],
                "group_name": "Drama",
                "prompt": title,
                "prompt_token_ids": ids,
                "dropped_history": 0,
                "epoch": 0,
                "data_as_of": datetime(1998, 1, 1, tzinfo=UTC),
            }
        )
    parts = shards.write_shards(
        settings.run_dir(run_id), "item", pa.Table.from_pylist(rows, REQUEST).to_batches(), 100, pool_version
    )
    return Plan(
        run_id=run_id,
        domain="movies",
        framework="kar",
        decoding=decoding,
        started_at=datetime.now(UTC),
        shards=parts,
        funnel={},
        estimate=Estimate(tokens=0, seconds=None, cost=None, tokens_per_second=None, basis="nothing"),
    )


def work_off(settings: Settings, plan: Plan) -> dict[str, Any]:
    """The manifest of a plan's only shard."""
    [manifest] = worker.work_off(settings, plan, plan.shards)
    return manifest


def texts(settings: Settings, plan: Plan) -> dict[str, str]:
    written, _ = shards.read_staged(settings.run_dir(plan.run_id), [shard.name for shard in plan.shards])
    rows = written.to_pylist()
    assert len({row["request_id"] for row in rows}) == len(rows)
    return {row["entity_id"]: row["text_hash"] for row in rows}


def test_every_request_is_answered_in_parts_and_the_manifest_comes_last(settings: Settings) -> None:
    plan = planned(settings, ["Heat", "Alien", "Fargo", "Ran"])
    manifest = work_off(settings, plan)
    staged = settings.run_dir("run") / "staged" / "item-0000"
    assert shards.read_manifest(staged) == manifest
    assert (manifest["texts"], manifest["failed"], manifest["resumed"]) == (4, 0, 0)
    assert len(list(staged.glob("part-*.parquet"))) > 1
    assert set(texts(settings, plan)) == {"Heat", "Alien", "Fargo", "Ran"}
    assert not list(staged.glob(".*"))
    assert shards.engine_seconds(settings.run_dir("run"), ["item-0000"]) > 0
    assert work_off(settings, plan) == manifest  # done is done


def test_of_two_tries_at_once_each_request_counts_once_and_nothing_is_overwritten(settings: Settings) -> None:
    plan = planned(settings, ["Heat", "Alien", "Fargo"])
    work_off(settings, plan)
    staged = settings.run_dir("run") / "staged" / "item-0000"
    written = texts(settings, plan)
    for part in staged.glob("part-*.parquet"):  # a try that was thought dead writes the same again
        rows = pq.read_table(part).to_pylist()
        shards.write_part(staged, 0, "00000000000000000000-aaaaaaaa", rows, [], 1.0)
    assert texts(settings, plan) == written
    assert len(list(staged.glob("part-*.parquet"))) > len(written) / 4


def test_a_worker_that_was_killed_goes_on_where_it_stopped(settings: Settings) -> None:
    titles = ["Heat", "Alien", "Fargo", "Ran", "M"]
    undisturbed = planned(settings, titles, "undisturbed")
    work_off(settings, undisturbed)
    plan = planned(settings, titles)
    work_off(settings, plan)
    staged = settings.run_dir("run") / "staged" / "item-0000"
    next(staged.glob("manifest-*.json")).unlink()
    lost = max(staged.glob("part-*.parquet"))
    lost_rows = pq.read_metadata(lost).num_rows
    lost.unlink()
    manifest = work_off(settings, plan)
    assert manifest["resumed"] == len(titles) - lost_rows
    assert manifest["texts"] == lost_rows
    assert texts(settings, plan) == texts(settings, undisturbed)


def test_a_request_that_cannot_be_served_is_staged_with_its_reason(settings: Settings) -> None:
    plan = planned(settings, ["Heat", "long " * 300])
    manifest = work_off(settings, plan)
    _, failed = shards.read_staged(settings.run_dir("run"), ["item-0000"])
    assert manifest["failed"] == 1
    [row] = failed.to_pylist()
    assert row["rule"] == "generation"
    assert "exceed the engine's length" in row["value"]
    assert set(texts(settings, plan)) == {"Heat"}


def test_a_pinned_pool_changes_the_steps_and_not_the_texts(settings: Settings) -> None:
    plan = planned(settings, ["Heat", "Alien"], "first")
    work_off(settings, plan)
    written, _ = shards.read_staged(settings.run_dir("first"), ["item-0000"])
    store = PoolStore(settings.pool_dir("movies", "item"))
    pool = PoolBuilder(store, settings.model, plan.decoding.tokenizer_hash, 258).build(
        written.select(["group_name", "token_ids"]).rename_columns(["group", "token_ids"])
    )
    again = planned(settings, ["Heat", "Alien"], "second", pool.version)
    manifest = work_off(settings, again)
    assert manifest["tokens_per_step"] > 2
    assert texts(settings, again) == texts(settings, plan)
    drafted, _ = shards.read_staged(settings.run_dir("second"), ["item-0000"])
    assert set(drafted["pool_version"].to_pylist()) == {pool.version}


def test_another_tokenizer_than_the_plans_is_refused(settings: Settings) -> None:
    plan = planned(settings, ["Heat"])
    other = plan.model_copy(update={"decoding": Decoding(settings.model, "other", "strict", 2, 0.1, NEW_TOKENS)})
    with pytest.raises(ModelError, match="was planned with other; plan the run again"):
        work_off(settings, other)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_a_plan_is_worked_in_its_precision_whatever_the_worker_s_settings_say(
    settings: Settings, precision: str
) -> None:
    titles = ["Heat", "Alien", "Fargo", "Ran"]
    here = settings.model_copy(update={"device": "cpu"})
    other = here.model_copy(update={"weights": "bfloat16" if precision == "int8" else "int8"})
    same = here.model_copy(update={"weights": "int8" if precision == "int8" else "bfloat16"})
    found = []
    for worker_settings, of_plan in ((here, precision), (other, precision), (same, precision), (same, "fp32")):
        plan = planned(here, titles, f"run-{len(found)}", precision=of_plan)
        work_off(worker_settings, plan)
        found.append(texts(here, plan))
    assert found[0] == found[1] == found[2]
    plain = planned(here, titles, "plain")
    work_off(here, plain)
    assert found[3] == texts(here, plain) != found[0]


def test_a_run_goes_on_in_the_precision_that_it_began_in(settings: Settings) -> None:
    titles = ["Heat", "Alien", "Fargo", "Ran"]
    here = settings.model_copy(update={"device": "cpu"})
    undisturbed, plan = (planned(here, titles, name, precision="int8") for name in ("undisturbed", "run"))
    work_off(here, undisturbed)
    work_off(here, plan)
    staged = settings.run_dir("run") / "staged" / "item-0000"
    next(staged.glob("manifest-*.json")).unlink()
    max(staged.glob("part-*.parquet")).unlink()
    assert work_off(here.model_copy(update={"weights": "bfloat16"}), plan)["resumed"] > 0
    assert texts(here, plan) == texts(here, undisturbed)


def test_a_precision_that_the_worker_cannot_write_in_is_refused_before_a_text_is_written(settings: Settings) -> None:
    plan = planned(settings, ["Heat"], precision="int8")
    with pytest.raises(
        ModelError, match=r"run run, planned in int8, cannot be written here: int8 is for CPUs.*cuda.*plan again"
    ):
        work_off(settings.model_copy(update={"device": "cuda"}), plan)
    assert not list((settings.run_dir("run") / "staged").glob("*/*"))


def test_a_plan_of_an_earlier_release_is_one_in_fp32(settings: Settings) -> None:
    plan = planned(settings, ["Heat"])
    told = json.loads(plan.model_dump_json())
    del told["decoding"]["precision"]
    assert Plan.model_validate(told) == plan
