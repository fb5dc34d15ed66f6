"""``group`` on rows as ``pull`` writes them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from dare_core.errors import InputError
from dare_core.schemas import ENTITY, PULLED
from spark_jobs.group import group, group_name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (["Drama", "Comedy"], "Drama"),
        ([], "unknown"),
        (None, "unknown"),
        ("  sci-fi \n\t film\x07\u202e ", "sci-fi film"),
        (" ", "unknown"),
        ("*", "unknown"),
        ("x" * 100, "x" * 64),
        (1995, "1995"),
        (True, "true"),
    ],
)
def test_a_group_is_named_by_one_printable_line(value: Any, name: str) -> None:
    assert group_name(value) == name


def test_entities_get_the_group_of_their_configured_attribute(spark: SparkSession, shop: Any, tmp_path: Path) -> None:
    attributes = [{"genres": ["Drama"]}, {"genres": ["Drama", "War"]}, {"occupation": "not for items"}]
    rows = [
        {"domain": "shop", "kind": "item", "entity_id": str(index), "attributes": json.dumps(entity),
         "data_as_of": datetime(2024, 1, 1, tzinfo=UTC)}
        for index, entity in enumerate(attributes)
    ]  # fmt: skip
    for kind, some in {"item": rows, "user": []}.items():
        (tmp_path / "in" / kind).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(some, PULLED), tmp_path / "in" / kind / "part.parquet")
    assert group(spark, shop.domain, tmp_path / "in", tmp_path / "out") == {"item": 3, "user": 0, "groups": 2}
    written = pq.read_table(tmp_path / "out" / "item")
    assert [(field.name, field.type) for field in written.schema] == [(field.name, field.type) for field in ENTITY]
    groups = dict(zip(written["entity_id"].to_pylist(), written["group_name"].to_pylist(), strict=True))
    assert groups == {"0": "Drama", "1": "Drama", "2": "unknown"}
    assert sorted(written["attributes"].to_pylist()) == sorted(row["attributes"] for row in rows)


def test_a_folder_without_pulled_entities_is_an_error(spark: SparkSession, shop: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pull first"):
        group(spark, shop.domain, tmp_path, tmp_path / "out")
