"""A run's files as they may be found: an error that names the file, or the very content that was written."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dare_core.errors import InputError
from dare_core.knowledge import shards
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.requests import Decoding
from dare_core.knowledge.shards import Plan, Shard
from dare_core.schemas import KNOWLEDGE, PULLED, REQUEST
from dare_core.storage import run_files
from tests.fuzz.damage import damaged
from tests.fuzz.effort import tries

#: Kinds that a column may have in a file of somebody else's.
KINDS = [pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_(), pa.binary(), pa.list_(pa.int64()), pa.null()]


@pytest.fixture
def texts(knowledge_rows: Callable[[list[dict[str, Any]]], pa.Table]) -> pa.Table:
    return knowledge_rows([{"request_id": f"r{number}", "entity_id": str(number)} for number in range(20)])


def read(run_dir: Path) -> pa.Table | None:
    """The staged texts; None where they are refused."""
    try:
        return shards.read_staged(run_dir, ["item-0000"])[0]
    except InputError as error:
        assert str(run_dir / "staged") in str(error)
        assert "run the stage that writes it again" in str(error)
        assert "\n" not in str(error)
        return None


@tries(120)
@given(data=st.data())
def test_a_damaged_part_is_refused_or_holds_what_was_written(
    tmp_path: Path, texts: pa.Table, data: st.DataObject
) -> None:
    path = tmp_path / "staged" / "item-0000" / "part-0000-try.parquet"
    shards.write_part(path.parent, 0, "try", texts.to_pylist(), [], 1.5)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = read(tmp_path)
    assert found is None or found.equals(texts)


@tries(150)
@given(data=st.data())
def test_a_part_of_another_schema_is_refused(tmp_path: Path, texts: pa.Table, data: st.DataObject) -> None:
    path = tmp_path / "staged" / "item-0000" / "part-0000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    at = data.draw(st.integers(0, len(KNOWLEDGE) - 1))
    field = KNOWLEDGE.field(at)
    change = data.draw(st.sampled_from(["gone", "named", "kind", "null", "more"]))
    if change == "gone":
        table = texts.remove_column(at)
    elif change == "named":
        table = texts.rename_columns([f"{name}_" if name == field.name else name for name in texts.column_names])
    elif change == "kind":
        kind = data.draw(st.sampled_from([kind for kind in KINDS if kind != field.type]))
        table = texts.set_column(at, pa.field(field.name, kind), pa.nulls(len(texts), kind))
    elif change == "null":
        values = [None, *texts.column(at).to_pylist()[1:]]
        table = texts.set_column(at, pa.field(field.name, field.type), pa.array(values, field.type))
    else:
        table = texts.append_column("another", pa.nulls(len(texts)))
    pq.write_table(table, path)
    found = read(tmp_path)
    assert found is None or (change == "null" and field.nullable and found.num_rows == texts.num_rows)


def test_a_part_whose_columns_stand_in_another_order_is_the_same(tmp_path: Path, texts: pa.Table) -> None:
    path = tmp_path / "staged" / "item-0000" / "part-0000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(texts.select(texts.column_names[::-1]), path)
    found = read(tmp_path)
    assert found is not None and found.equals(texts)


@pytest.mark.parametrize("schema", [PULLED, REQUEST, KNOWLEDGE])
def test_a_folder_without_files_has_no_rows(tmp_path: Path, schema: pa.Schema) -> None:
    assert run_files.read_table(tmp_path, schema).equals(schema.empty_table())


PLAN = Plan(
    run_id="r", domain="movies", framework="kar", started_at=datetime(2026, 1, 1, tzinfo=UTC), funnel={},
    decoding=Decoding(model="m", tokenizer_hash="t", verification="strict", top_k=1, min_prob=0, max_new_tokens=8),
    shards=[Shard(name="item-0000", kind="item", requests=2, pool_version=None)],
    estimate=Estimate(tokens=16, seconds=None, cost=None, tokens_per_second=None, basis="nothing measured"),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@tries(150)
@given(data=damaged(PLAN.model_dump_json().encode()))
def test_a_damaged_plan_is_refused_or_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(data)
    try:
        found = shards.read_plan(tmp_path)
    except InputError as error:
        assert str(tmp_path / "plan.json") in str(error)
        return
    assert Plan.model_validate_json(data) == found


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "item-0000/../..", "item-0000\n", "", "item-"])
def test_a_plan_names_no_file_outside_its_run(tmp_path: Path, name: str) -> None:
    document = json.loads(PLAN.model_dump_json())
    document["shards"][0]["name"] = name
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="is not what a run left there"):
        shards.read_plan(tmp_path)


@tries(150)
@given(data=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_shards_manifest_of_any_content_is_refused_or_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    try:
        assert isinstance(shards.read_manifest(tmp_path), dict)
    except InputError as error:
        assert str(tmp_path / "manifest.json") in str(error)
