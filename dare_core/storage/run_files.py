"""What a run leaves in its folder: Parquet and JSON files, each whole or not there, and checked when they are read."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from dare_core.errors import InputError, StorageError
from dare_core.storage.atomic import appearing, write_atomically

#: Characters of a problem that an error shows.
_SHOWN: Final = 300
_Model = TypeVar("_Model", bound=BaseModel)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Word what goes wrong while a file of a run is written.

    Raises:
        StorageError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {os.strerror(error.errno) if error.errno else error}; nothing is left of it. "
            f"Make room there and run the same again: it goes on where it was"
        ) from error


def write_json(path: Path, content: str) -> None:
    """Write a file that is either whole or not there.

    Raises:
        StorageError: there is no room for it.
    """
    with storing(path):
        write_atomically(path, content.encode(), durable=False)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that is either whole or not there.

    Raises:
        StorageError: there is no room for it.
    """
    with storing(path), appearing(path) as scratch:
        pq.write_table(table, scratch, compression="zstd", write_page_checksum=True)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A Parquet file, or a folder of them, that holds what the schema says and nothing else.

    Raises:
        InputError: it is no Parquet, cut short or damaged; lacks a column or has another, or one of another type; or a
            required value is missing.
    """
    table = read_parquet(path)
    if not table.num_columns and not len(table):  # a folder without files
        return schema.empty_table()
    return _fitting(path, table, schema)


def read_batches(path: Path, schema: pa.Schema, rows: int = 10_000) -> Iterator[pa.Table]:
    """As :func:`read_table`, a few rows at a time: memory does not grow with the table."""
    for file in sorted(path.glob("[!_.]*.parquet")) if path.is_dir() else [path]:
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as opened:
                for batch in opened.iter_batches(rows, use_threads=False):
                    batch.validate(full=True)
                    yield _fitting(path, pa.Table.from_batches([batch]), schema)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise unreadable(path, str(error)) from None


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, or a folder of them, whatever it holds; or some columns of it.

    Arrow's own threads are left out: where memory is full, and none can be started, it waits for one for ever.

    Raises:
        InputError: it is no Parquet, cut short or damaged, or lacks one of ``columns``.
    """
    files = sorted(path.glob("[!_.]*.parquet")) if path.is_dir() else [path]
    try:
        parts = []
        for file in files:
            with pq.ParquetFile(file, page_checksum_verification=True) as opened:
                parts.append(opened.read(columns, use_threads=False))
        table = pa.concat_tables(parts) if parts else pa.table({})
        table.validate(full=True)
        names = table.column_names  # those that are no text raise here
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise unreadable(path, str(error)) from None
    if len(set(names)) < len(names):
        raise unreadable(path, "two of its columns have one name")
    for name in columns or ():
        if name not in names:
            raise unreadable(path, f"it has no column {name!r}")
    return table


def _fitting(path: Path, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table that was read, as the schema has it."""
    there = dict(zip(table.column_names, table.schema.types, strict=True))
    for field in schema:
        if there.pop(field.name, None) != field.type:
            raise unreadable(path, f"it has no column {field.name!r} of type {field.type}")
        if not field.nullable and table[field.name].null_count:
            raise unreadable(path, f"column {field.name!r} has {table[field.name].null_count} rows without a value")
    if there:
        raise unreadable(path, f"it has a column {next(iter(there))!r} that does not belong there")
    return table.select(schema.names).cast(schema)


def read_json(path: Path, kind: type[_Model], missing: str) -> _Model:
    """A file that :func:`write_json` wrote of a model.

    Raises:
        InputError: it is ``missing``, which says what has not been done; or it holds something else.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is not there: {missing}") from None
    except (OSError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise unreadable(path, problem) from None


def unreadable(path: Path, problem: str) -> InputError:
    """The error about a file that holds something else than a run leaves in it."""
    return InputError(
        f"{path} is not what a run left there: {' '.join(problem.split())[:_SHOWN]}; remove it, and run the stage that "
        "writes it again"
    )
