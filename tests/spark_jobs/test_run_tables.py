"""Tables of a run, written and read by executors: whole or not there, in a folder and at a URL."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PythonException
from pyspark.sql import SparkSession

from dare_core.errors import StorageError
from dare_core.schemas import TIME
from dare_core.storage import run_files
from dare_core.storage.locations import files_in, location
from spark_jobs import run_tables
from spark_jobs.source_tables import failures_in_words

SCHEMA = pa.schema(
    [pa.field("entity_id", pa.string(), nullable=False), pa.field("at", TIME), pa.field("events", pa.int64())]
)


@pytest.fixture(params=["folder", "url"])
def root(request: pytest.FixtureRequest, spark: SparkSession, tmp_path: Path) -> Iterator[str]:
    """A folder's path, and a URL that is none: fsspec's cached file system, whose files every process sees.

    Its folders have to be made, which an object store does not ask for; so the workers' fsspec is told to, by the
    variable that the programs pass on.
    """
    if request.param == "folder":
        yield str(tmp_path)
        return
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(fsspec.config.conf, "file", {"auto_mkdir": True})
        patched.setitem(spark.sparkContext.environment, "FSSPEC_FILE", '{"auto_mkdir": true}')
        url = f"simplecache::file://{tmp_path}"
        assert not isinstance(location(url), Path)
        yield url


def rows(count: int, first: int = 0) -> pa.Table:
    ids = [f"日本 {number}" for number in range(first, first + count)]
    return pa.table([ids, pa.array(range(count), TIME), range(count)], SCHEMA)


def found(spark: SparkSession, folder: str, columns: list[str] | None = None) -> list[tuple[object, ...]] | None:
    frame = run_tables.read(spark, folder, SCHEMA, columns)
    return None if frame is None else sorted(tuple(row.values()) for row in frame.toArrow().to_pylist())


def test_what_is_written_is_read_a_file_for_each_partition_that_has_rows(spark: SparkSession, root: str) -> None:
    folder = f"{root}/of users/日本"
    frame = spark.createDataFrame(rows(10)).repartition(4).where("events < 3 or events = 7")
    assert run_tables.write(frame, folder, SCHEMA) == 4
    assert found(spark, folder) == [
        tuple(row.values()) for row in rows(10).to_pylist() if row["events"] in (0, 1, 2, 7)
    ]
    assert found(spark, folder, ["events"]) == [(0,), (1,), (2,), (7,)]
    assert run_files.read_table(location(folder), SCHEMA).schema == SCHEMA  # other stages read it too
    assert 1 <= len(run_tables.files_of(folder)) <= 4


def test_a_table_without_rows_is_one_and_where_nobody_wrote_is_none(spark: SparkSession, root: str) -> None:
    assert run_tables.read(spark, f"{root}/t", SCHEMA) is None
    assert run_tables.write(spark.createDataFrame(rows(1)).limit(0), f"{root}/t", SCHEMA) == 0
    assert found(spark, f"{root}/t") == []
    (Path(root.removeprefix("simplecache::file://")) / "empty").mkdir()
    assert run_tables.read(spark, f"{root}/empty", SCHEMA) is None


def test_a_failed_try_leaves_no_table_and_the_next_one_no_row_of_it(spark: SparkSession, root: str) -> None:
    def fails(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch["events"][0].as_py() == 0:
                raise ValueError("no room")
            yield batch

    frame = spark.createDataFrame(rows(9)).repartitionByRange(3, "events")
    with pytest.raises(PythonException, match="no room"):
        run_tables.write(frame, f"{root}/t", SCHEMA, fails)
    assert files_in(location(f"{root}/t")), "other tasks' files"
    assert found(spark, f"{root}/t") is None
    assert run_files.table_files(location(f"{root}/t")) == []

    assert run_tables.write(frame, f"{root}/t", SCHEMA) == 9
    assert len(found(spark, f"{root}/t") or ()) == 9
    with pytest.raises(PythonException, match="no room"):
        run_tables.write(frame, f"{root}/t", SCHEMA, fails)
    assert len(found(spark, f"{root}/t") or ()) == 9, "a table stays until the next one is whole"
    run_tables.write(spark.createDataFrame(rows(2, first=20)), f"{root}/t", SCHEMA)
    assert [row[0] for row in found(spark, f"{root}/t") or ()] == ["日本 20", "日本 21"]


def test_a_folder_that_an_earlier_release_left_is_read(spark: SparkSession, tmp_path: Path) -> None:
    spark.createDataFrame(rows(5)).repartition(2).write.parquet(str(tmp_path / "t"))
    assert (tmp_path / "t" / "_SUCCESS").exists()
    assert [row[2] for row in found(spark, str(tmp_path / "t")) or ()] == [0, 1, 2, 3, 4]


def test_a_damaged_file_fails_by_its_name(spark: SparkSession, tmp_path: Path) -> None:
    run_tables.write(spark.createDataFrame(rows(5)).coalesce(1), str(tmp_path), SCHEMA)
    [file] = map(Path, run_tables.files_of(str(tmp_path)))
    pq.write_table(rows(5).drop_columns("events"), file)
    with pytest.raises(PythonException, match=f"{file.name} is not what a run left there: it has no column 'events'"):
        found(spark, str(tmp_path))


def test_a_place_that_cannot_be_written_is_said_in_one_sentence(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where the folder should be", "utf-8")
    with pytest.raises(StorageError, match="cannot be written: File exists; ") as raised, failures_in_words():
        run_tables.write(spark.createDataFrame(rows(1)), str(tmp_path / "file"), SCHEMA)
    assert "\n" not in str(raised.value)
