"""The tables of a run, as Spark's executors write and read them: in a local folder, or at any URL of fsspec.

Executors' Python opens the files, by the functions that every other stage uses. So no filesystem of Hadoop has to serve
the URL, and a table is what its manifest names: files of tasks that failed, of tasks that Spark ran twice and of
earlier tries belong to nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Final
from uuid import uuid4

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from dare_core.storage import run_files
from dare_core.storage.locations import location

#: Rows that a Python worker reads at once: some tens of megabytes of users with long histories.
_ROWS_AT_ONCE: Final = 4096

Batches = Iterator[pa.RecordBatch]


def write(
    frame: DataFrame, folder: str, schema: pa.Schema, change: Callable[[Batches], Batches] = lambda batches: batches
) -> int:
    """Write a frame as Parquet files, one for each partition that has rows; one without rows is a table too.

    Memory holds a batch of each partition.

    Args:
        frame: to be written.
        folder: a folder or a URL. A table that is there stays until the new one is whole.
        schema: of the table.
        change: what executors make of a partition's batches before they write them; all of the schema's columns are
            there afterwards, and no others.

    Returns:
        How many rows the table has.
    """

    def store(batches: Batches) -> Batches:
        pieces = (pa.Table.from_batches([batch]).select(schema.names).cast(schema) for batch in change(batches))
        filled = (piece for piece in pieces if len(piece))
        first = next(filled, None)
        if first is None:
            return
        context, rows = TaskContext.get(), 0
        assert context is not None

        def counted() -> Iterator[pa.Table]:
            nonlocal rows
            for piece in chain([first], filled):
                rows += len(piece)
                yield piece

        name = run_files.listed_name(f"{context.partitionId():05d}-{uuid4().hex}")
        run_files.write_pieces(location(folder) / name, counted(), schema, dict)
        yield pa.record_batch({"file": [name], "rows": [rows]})

    written = frame.mapInArrow(store, "file string, rows long").collect()
    run_files.write_manifest(location(folder), [row["file"] for row in written])
    return sum(row["rows"] for row in written)


def read(spark: SparkSession, folder: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> DataFrame | None:
    """A table of a run; executors read its files, as many at once as they have cores.

    Args:
        spark: the session.
        folder: a folder or a URL.
        schema: of the table.
        columns: those to read; default: all.

    Returns:
        None where nobody wrote a table.
    """
    if not run_files.is_table(location(folder)):
        return None
    files = files_of(folder)
    wanted = pa.schema([schema.field(name) for name in columns or schema.names])

    def rows(numbers: Batches) -> Batches:
        for batch in numbers:
            yield from batches([files[number] for number in batch["id"].to_pylist()], wanted)

    numbers = spark.range(0, len(files), 1, max(len(files), 1))
    return numbers.mapInArrow(rows, from_arrow_schema(wanted))


def files_of(folder: str) -> list[str]:
    """The files of a table, as executors can be told of them."""
    return [str(file) for file in run_files.table_files(location(folder))]


def batches(files: Sequence[str], schema: pa.Schema) -> Batches:
    """The rows of some files of a table, as far as the schema has their columns; memory holds a batch.

    Raises:
        InputError: see :func:`~dare_core.storage.run_files.read_pieces`.
        StorageError: a file cannot be reached.
    """
    for file in files:
        for piece in run_files.read_pieces(location(file), schema, _ROWS_AT_ONCE, others=True):
            yield from piece.to_batches()
