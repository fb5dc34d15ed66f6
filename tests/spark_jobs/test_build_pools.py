"""``build_pools``: from rows to segments, the same ones however Spark spreads the rows."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from dare_core.errors import InputError, PoolError
from dare_core.pools import Limits, PoolBuilder, PoolStore, builder
from dare_core.pools.segments import Segment, SegmentEntry
from dare_core.schemas import TIME, TOKENS
from dare_core.stages.pools import read_grown
from spark_jobs import build_pools
from spark_jobs.build_pools import Knowledge, Target, build_segments, main, read_file, read_warehouse

VOCABULARY = 1000

TEXTS = pa.schema([("group", pa.string()), ("token_ids", TOKENS), ("entity_id", pa.string()), ("available_at", TIME)])

Row = tuple[str, list[int], str | None]


def table(rows: Sequence[Row]) -> pa.Table:
    written = datetime(2024, 1, 1, 22, tzinfo=UTC)
    return pa.Table.from_arrays(
        [*(pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), TEXTS.types, strict=False)),
         pa.array([written] * len(rows), TIME)],
        schema=TEXTS,
    )  # fmt: skip


def some_rows(groups: Mapping[str, int], seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    return [
        (group, random.integers(0, VOCABULARY, random.integers(1, 40)).tolist(), f"{group} {number % 50}")
        for group, count in groups.items()
        for number in range(count)
    ]


def built(
    spark: SparkSession, rows: pa.Table, pool: Path, partitions: int = 1, segment_tokens: int = 1000
) -> list[tuple[str, SegmentEntry]]:
    frame = spark.createDataFrame(rows).repartition(partitions)
    return build_segments(frame, str(pool), VOCABULARY, segment_tokens)


def test_the_same_bytes_come_out_whatever_the_partitioning_and_the_order(spark: SparkSession, tmp_path: Path) -> None:
    rows = some_rows({"Drama": 300, "Comedy": 20, "日本 – «été»": 5})
    first = built(spark, table(rows), tmp_path / "one")
    np.random.default_rng(1).shuffle(rows)  # type: ignore[arg-type]
    assert built(spark, table(rows), tmp_path / "other", partitions=5) == first
    groups = [group for group, _ in first]
    assert groups == sorted(groups)
    assert set(groups) == {"Drama", "Comedy", "日本 – «été»"}
    for _, entry in first:
        one, other = (tmp_path / pool / "segments" / entry.sha256 for pool in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


def test_a_huge_group_is_split_by_entity_and_merges_to_what_one_task_would_build(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = table(some_rows({"Drama": 300, "Comedy": 20}))
    split = built(spark, rows, tmp_path / "split", segment_tokens=1000)
    parts = [entry for group, entry in split if group == "Drama"]
    assert len(parts) > 3
    assert [group for group, _ in split].count("Comedy") == 1
    segments = [Segment.map(tmp_path / "split" / "segments" / part.sha256) for part in parts]
    entities = [set(segment.rows["entity"].tolist()) for segment in segments]
    assert sum(map(len, entities)) == len(set.union(*entities))  # an entity's texts are in one part
    (whole,) = (
        entry for group, entry in built(spark, rows, tmp_path / "whole", segment_tokens=10**6) if group == "Drama"
    )
    merged = Segment.merge(segments)
    assert merged.to_bytes() == (tmp_path / "whole" / "segments" / whole.sha256).read_bytes()
    assert merged.texts == 300


def test_texts_that_are_there_twice_count_once_and_empty_groups_have_no_segment(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows: list[Row] = [
        ("Drama", [1, 2, 3], "a"), ("Drama", [1, 2, 3], "a"), ("Drama", [1, 2, 3], "b"), ("Drama", [], "c"),
        ("nothing but empty texts", [], "d"),
    ]  # fmt: skip
    ((group, entry),) = built(spark, table(rows), tmp_path)
    assert (group, entry.texts, entry.tokens) == ("Drama", 2, 6)
    assert built(spark, table(rows)[3:], tmp_path) == []
    assert built(spark, TEXTS.empty_table(), tmp_path) == []


def test_columns_beyond_group_and_tokens_may_be_missing(spark: SparkSession, tmp_path: Path) -> None:
    rows = table(some_rows({"Drama": 100}))
    found = built(spark, rows.select(["group", "token_ids"]), tmp_path, partitions=3)
    assert len(found) > 1  # split by what the texts say
    assert sum(entry.texts for _, entry in found) == 100


@pytest.mark.parametrize(("token", "said"), [(VOCABULARY, "holds 1000"), (-1, "holds -1")])
def test_a_token_id_out_of_range_is_an_error_that_names_the_group(
    spark: SparkSession, tmp_path: Path, token: int, said: str
) -> None:
    rows = table([("Drama", [1, 2], "a"), ("日本", [1, token], "b")])
    with pytest.raises(PoolError, match=rf"group '日本': token_ids {said}, which is outside the tokenizer's 0..999"):
        built(spark, rows, tmp_path)


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ({"token_ids": [[1]]}, "column 'group' is missing; there are: token_ids"),
        ({"group": ["a"], "token_ids": ["1 2"]}, "column 'token_ids' holds string, not lists of whole numbers"),
        ({"group": ["a", None], "token_ids": [[1], [1]]}, "column 'group' holds nulls"),
        ({"group": ["a", "é"], "token_ids": [[1], None]}, "column 'token_ids' holds nulls, in group 'é'"),
        ({"group": ["a", "b"], "token_ids": [[1], [1, None]]}, "column 'token_ids' holds nulls, in group 'b'"),
        ({"group": ["*"], "token_ids": [[1]]}, "the group name '\\*' is the global pool's"),
        ({"group": [""], "token_ids": [[1]]}, "a group has an empty name"),
    ],
)
def test_rows_that_cannot_be_indexed_are_refused(
    spark: SparkSession, tmp_path: Path, rows: dict[str, Any], error: str
) -> None:
    with pytest.raises((InputError, PoolError), match=error):
        built(spark, pa.table(rows), tmp_path)
    assert not (tmp_path / "segments").exists()


def test_a_pool_that_cannot_be_written_is_said_so(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "segments").write_text("a file where the folder should be")
    with pytest.raises(PoolError, match=r"group 'Drama': .*cannot be written"):
        built(spark, table([("Drama", [1], "a")]), tmp_path)


def test_a_file_that_is_no_knowledge_is_an_error(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_file(spark, tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not Parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_file(spark, tmp_path / "text.parquet")


def test_segments_are_published_as_one_version(spark: SparkSession, tmp_path: Path) -> None:
    rows = table(some_rows({"Drama": 200, "Comedy": 20}))
    store = PoolStore(tmp_path / "spark")
    segments: dict[str, list[SegmentEntry]] = {}
    for group, entry in built(spark, rows, tmp_path / "spark"):
        segments.setdefault(group, []).append(entry)
    published = PoolBuilder(store, "model", "hash", VOCABULARY).publish(segments)
    alone = PoolBuilder(PoolStore(tmp_path / "alone"), "model", "hash", VOCABULARY).build(rows)
    assert (published.texts, published.tokens) == (alone.texts, alone.tokens)
    assert {name: part.texts for name, part in published.groups.items()} == {
        name: part.texts for name, part in alone.groups.items()
    }


def test_groups_grow_in_executors_to_the_version_that_one_process_makes(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "GLOBAL_TOKENS", 3000)  # the global pool is a sample, read by several tasks
    monkeypatch.setattr(build_pools, "SEGMENT_TOKENS", 1000)
    limits = Limits(group_bytes=40_000)
    nights = [some_rows({"Drama": 300, "Comedy": 20}), some_rows({"Drama": 200, "日本": 9}, seed=1)]
    nights[1] += nights[0][:40]  # those are there already
    alone, spread = PoolStore(tmp_path / "alone"), PoolStore(tmp_path / "spread")
    before = None
    for rows in nights:
        one, other = (built(spark, table(rows), store.files.local, segment_tokens=500) for store in (alone, spread))
        segments: dict[str, list[SegmentEntry]] = {}
        for group, entry in one:
            segments.setdefault(group, []).append(entry)
        expected = PoolBuilder(alone, "m", "h", VOCABULARY, limits=limits).publish(segments, onto=before)
        made = build_pools.grow(spark, other, Target(str(spread.root), "h", VOCABULARY, limits, before, before))
        grown, samples, halvings = read_grown(json.loads(json.dumps(made)))
        assert halvings > 0
        assert len(samples) > 1
        found = PoolBuilder(spread, "m", "h", VOCABULARY, limits=limits).publish_grown(
            grown, samples, halvings, before, before
        )
        assert found == expected
        names = [sorted(path.name for path in (tmp_path / pool / "segments").iterdir()) for pool in ("alone", "spread")]
        assert names[0] == names[1], "what was written on the way is gone"
        before = found.version
    assert expected.groups["Drama"].tokens * 9 <= 40_000

    (tmp_path / "spread" / "segments" / expected.groups["Drama"].segments[0].sha256).unlink()
    with pytest.raises(PoolError, match="is missing"):
        build_pools.grow(spark, other, Target(str(spread.root), "h", VOCABULARY, limits, before, before))


def test_the_warehouse_s_texts_are_those_of_the_kind_that_were_loaded_in_the_window(
    spark: SparkSession, warehouse_url: str
) -> None:
    day = datetime(2024, 1, 1, tzinfo=UTC)
    columns = {
        "domain": "text", "kind": "text", "tokenizer_hash": "text", "group_name": "text", "entity_id": "text",
        "token_ids": "int[]", "available_at": "timestamptz", "valid_from": "timestamptz",
    }  # fmt: skip
    defaults = (
        "request_id, prompt, prompt_token_ids, dropped_history, epoch, data_as_of, text, text_hash, finish_reason, "
        "framework, model, verification, top_k, min_prob, max_new_tokens, run_id, prompt_tokens, new_tokens, steps, "
        "drafted, accepted, relaxed, seconds"
    )
    values = "%s, '', '{}', 0, 0, now(), '', '', 'stop', 'kar', '', 'strict', 1, 0, 1, '', 0, 0, 0, 0, 0, 0, 0"
    placeholders = ", ".join(["%s"] * len(columns))
    rows = [
        ("movies", "item", "hash", "Drama", "1", [1, 2], day, day),
        ("movies", "item", "hash", "Drama", "2", [3], day - timedelta(days=9), day + timedelta(days=1)),
        ("movies", "item", "hash", "Drama", "3", [4], day, day + timedelta(days=2)),
        ("movies", "user", "hash", "Drama", "4", [5], day, day + timedelta(days=1)),
        ("movies", "item", "other", "Drama", "5", [6], day, day + timedelta(days=1)),
        ("books", "item", "hash", "Drama", "6", [7], day, day + timedelta(days=1)),
    ]
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("SELECT knowledge.add_domain(domain) FROM unnest(ARRAY['movies', 'books']) AS domain")
        for number, row in enumerate(rows):
            connection.execute(
                f"INSERT INTO knowledge.knowledge ({', '.join(columns)}, {defaults}) VALUES ({placeholders}, {values})",
                (*row, str(number)),
            )

    def entities(since: datetime | None, until: datetime | None) -> list[str]:
        found = read_warehouse(spark, warehouse_url, Knowledge("movies", "item", "hash", since, until))
        assert found.columns == ["group", "token_ids", "entity_id", "available_at"]
        return sorted(row["entity_id"] for row in found.collect())

    assert entities(None, None) == ["1", "2", "3"]
    assert entities(day + timedelta(days=1), None) == ["2", "3"]
    assert entities(None, day + timedelta(days=1)) == ["1", "2"]
    assert entities(day + timedelta(microseconds=1), day + timedelta(days=1)) == ["2"]


def test_the_program_needs_to_know_where_the_texts_are(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    given = ["--pool", str(tmp_path), "--vocabulary", "9", "--out", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit):
        main(given)
    with pytest.raises(SystemExit):
        main([*given, "--domain", "movies"])
    assert "--domain needs --kind and --tokenizer-hash" in capsys.readouterr().err
