"""What a run leaves in its folder: Parquet and JSON files, each whole or not there, and checked when they are read."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from dare_core.errors import InputError
from dare_core.storage.atomic import appearing, storing, write_atomically
from dare_core.storage.locations import Location, fetched, is_folder, matching, read_bytes

#: Characters of a problem that an error shows.
_SHOWN: Final = 300
#: How the manifests of a table begin; Spark takes what begins like this for no data.
_MANIFEST: Final = "_files-"
#: How files begin that a table has only where a manifest names them.
_LISTED: Final = "listed-"
_Model = TypeVar("_Model", bound=BaseModel)


def write_json(path: Location, content: str) -> None:
    """Write a file that is either whole or not there.

    Raises:
        StorageError: there is no room for it.
    """
    with storing(path):
        write_atomically(path, content.encode(), durable=False)


def write_table(path: Location, table: pa.Table) -> None:
    """Write a Parquet file that is either whole or not there.

    Raises:
        StorageError: there is no room for it.
    """
    with storing(path), appearing(path) as scratch:
        pq.write_table(table, scratch, compression="zstd", write_page_checksum=True)


def write_pieces(
    path: Location, pieces: Iterable[pa.Table], schema: pa.Schema, notes: Callable[[], Mapping[str, str]]
) -> None:
    """Write a Parquet file of a table that comes in pieces; memory holds one of them.

    Args:
        path: of the file.
        pieces: of the schema.
        schema: theirs.
        notes: to be kept in the file, asked for when the last piece has come; see :func:`read_notes`.

    Raises:
        StorageError: there is no room for it.
    """
    with storing(path), appearing(path) as scratch:  # noqa: SIM117 - closed before it appears
        with pq.ParquetWriter(scratch, schema, compression="zstd", write_page_checksum=True) as writer:
            for piece in pieces:
                writer.write_table(piece)
            writer.add_key_value_metadata(dict(notes()))


def read_table(path: Location, schema: pa.Schema) -> pa.Table:
    """A Parquet file, or a folder of them, that holds what the schema says and nothing else.

    Raises:
        InputError: it is no Parquet, cut short or damaged; lacks a column or has another, or one of another type; or a
            required value is missing.
    """
    table = read_parquet(path)
    if not table.num_columns and not len(table):  # a folder without files
        return schema.empty_table()
    return _checked(path, table, schema)


def read_pieces(path: Location, schema: pa.Schema, rows: int = 10_000, others: bool = False) -> Iterator[pa.Table]:
    """What :func:`read_table` reads, at most ``rows`` at a time: memory holds a piece, whatever the file's size.

    Args:
        path: of a file or a folder.
        schema: of the pieces.
        rows: of a piece at most.
        others: files may have other columns too, which are not read.

    Raises:
        InputError: see there; of a piece, when it is its turn.
    """
    for file in table_files(path):
        with _worded(file), fetched(file) as local, pq.ParquetFile(local, page_checksum_verification=True) as opened:
            for batch in opened.iter_batches(rows, columns=schema.names if others else None, use_threads=False):
                table = pa.Table.from_batches([batch])
                table.validate(full=True)
                _refuse_twins(file, table.column_names)
                yield _checked(file, table, schema)


def _checked(path: Location, table: pa.Table, schema: pa.Schema) -> pa.Table:
    there = dict(zip(table.column_names, table.schema.types, strict=True))
    for field in schema:
        if there.pop(field.name, None) != field.type:
            raise unreadable(path, f"it has no column {field.name!r} of type {field.type}")
        if not field.nullable and table[field.name].null_count:
            raise unreadable(path, f"column {field.name!r} has {table[field.name].null_count} rows without a value")
    if there:
        raise unreadable(path, f"it has a column {next(iter(there))!r} that does not belong there")
    return table.select(schema.names).cast(schema)


def read_parquet(path: Location, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, or a folder of them, whatever it holds; or some columns of it.

    Arrow's own threads are left out: where memory is full, and none can be started, it waits for one for ever.

    Raises:
        InputError: it is no Parquet, cut short or damaged, or lacks one of ``columns``.
    """
    try:
        parts = []
        for file in table_files(path):
            with fetched(file) as local, pq.ParquetFile(local, page_checksum_verification=True) as opened:
                parts.append(opened.read(columns, use_threads=False))
        table = pa.concat_tables(parts) if parts else pa.table({})
        table.validate(full=True)
        names = table.column_names  # those that are no text raise here
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise unreadable(path, str(error)) from None
    _refuse_twins(path, names)
    for name in columns or ():
        if name not in names:
            raise unreadable(path, f"it has no column {name!r}")
    return table


def _refuse_twins(path: Location, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise unreadable(path, "two of its columns have one name")


def new_attempt() -> str:
    """A name that no earlier try used, and that sorts after theirs."""
    return f"{time.time_ns():020d}-{uuid4().hex[:8]}"


def write_manifest(folder: Location, names: Sequence[str]) -> None:
    """Say, when all is written, which files of a folder make up its table; those of earlier tries do not.

    The manifest's name is its own, and sorts after those before it: nothing that somebody may read is overwritten.

    Raises:
        StorageError: it cannot be written.
    """
    write_json(folder / f"{_MANIFEST}{new_attempt()}.json", json.dumps({"files": sorted(names)}))


def listed_name(name: str) -> str:
    """The name of a Parquet file that belongs to its folder's table only where a manifest names it."""
    return f"{_LISTED}{name}.parquet"


def is_table(folder: Location) -> bool:
    """Whether a folder holds a table, if only one without rows."""
    return bool(matching(folder, f"{_MANIFEST}*.json") or _unlisted(folder))


def _unlisted(folder: Location) -> list[Location]:
    """The Parquet files of a folder without manifests, as releases up to 0.1.0 left them."""
    return [path for path in matching(folder, "[!_.]*.parquet") if not path.name.startswith(_LISTED)]


def table_files(path: Location) -> list[Location]:
    """The Parquet files of a table: of a folder those that its newest manifest names, or where it has none, all but
    those that only a manifest can name.

    Raises:
        InputError: the manifest is damaged.
    """
    if not is_folder(path):
        return [path]
    manifests = matching(path, f"{_MANIFEST}*.json")
    if not manifests:
        return _unlisted(path)
    try:
        return [path / name for name in json.loads(read_bytes(manifests[-1]))["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(manifests[-1], str(error)) from None


def read_notes(path: Location) -> dict[str, str]:
    """What :func:`write_pieces` noted in a Parquet file; of another's, what else stands there.

    Raises:
        InputError: it is no Parquet, or damaged.
    """
    with _worded(path), fetched(path) as local:
        notes = pq.read_metadata(local).metadata or {}
        return {name.decode(): value.decode() for name, value in notes.items()}


def read_names(path: Location) -> list[str]:
    """The names of a Parquet file's columns.

    Raises:
        InputError: it is no Parquet, or damaged.
    """
    with _worded(path), fetched(path) as local:
        names: list[str] = pq.read_schema(local).names
        return names


@contextlib.contextmanager
def _worded(path: Location) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise unreadable(path, str(error)) from None


def read_json(path: Location, kind: type[_Model], missing: str) -> _Model:
    """A file that :func:`write_json` wrote of a model.

    Raises:
        InputError: it is ``missing``, which says what has not been done; or it holds something else.
    """
    try:
        return kind.model_validate_json(read_bytes(path))
    except FileNotFoundError:
        raise InputError(f"{path} is not there: {missing}") from None
    except (OSError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise unreadable(path, problem) from None


def unreadable(path: Location, problem: str) -> InputError:
    """The error about a file that holds something else than a run leaves in it."""
    return InputError(
        f"{path} is not what a run left there: {' '.join(problem.split())[:_SHOWN]}; remove it, and run the stage that "
        "writes it again"
    )
