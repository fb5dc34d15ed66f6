"""Shards: work lists of requests, the plan that names them, and the staged parts that a worker leaves.

<run>/plan.json                      what is asked of the run; written last by planning
<run>/shards/<shard>.parquet         the requests, sorted by group
<run>/staged/<shard>/part-0000.parquet      written texts (``schemas.KNOWLEDGE``)
<run>/staged/<shard>/failed-0000.parquet    requests that could not be served (``schemas.QUARANTINE``)
<run>/staged/<shard>/manifest.json   written last by the worker
<run>/staged/<shard>/probe.json      how fast plain decoding would have been; of a kind's first shard, where measured
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dare_core.config.domains import Framework
from dare_core.errors import InputError
from dare_core.knowledge.costs import Estimate, Funnel
from dare_core.knowledge.requests import Decoding
from dare_core.schemas import KNOWLEDGE, QUARANTINE, REQUEST, Kind
from dare_core.storage.files import storing, write_atomically

_SECONDS: Final = b"engine_seconds"
#: Characters of a problem that an error shows.
_SHOWN: Final = 300

_Model = TypeVar("_Model", bound=BaseModel)


class Shard(BaseModel):
    """A work list of one kind. ``pool_version`` is pinned: None where there was no pool when the run was planned."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=r"^[a-z]+-[0-9]+$", description="names files and a folder")
    kind: Kind
    requests: int
    pool_version: str | None


class Plan(BaseModel):
    """What a run does, fixed when it is planned, so that its later stages agree whatever settings say by then."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    domain: str
    framework: Framework
    decoding: Decoding
    started_at: datetime
    shards: list[Shard]
    funnel: dict[Kind, Funnel]
    estimate: Estimate

    @property
    def requests(self) -> int:
        """Texts to write."""
        return sum(shard.requests for shard in self.shards)

    def assignments(self, most: int) -> list[range]:
        """The shards in ``most`` runs of neighbours at most, as even as can be: what one task each works off."""
        count = min(most, len(self.shards))
        bounds = [len(self.shards) * number // count for number in range(count + 1)] if count else [0]
        return [range(first, end) for first, end in pairwise(bounds)]


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
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            pq.write_table(table, scratch, compression="zstd", write_page_checksum=True)
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A Parquet file, or a folder of them, that holds what the schema says and nothing else.

    Raises:
        InputError: it is no Parquet, cut short or damaged; lacks a column or has another, or one of another type; or a
            required value is missing.
    """
    table = read_parquet(path)
    if not table.num_columns and not len(table):  # a folder without files
        return schema.empty_table()
    there = dict(zip(table.column_names, table.schema.types, strict=True))
    for field in schema:
        if there.pop(field.name, None) != field.type:
            raise _unreadable(path, f"it has no column {field.name!r} of type {field.type}")
        if not field.nullable and table[field.name].null_count:
            raise _unreadable(path, f"column {field.name!r} has {table[field.name].null_count} rows without a value")
    if there:
        raise _unreadable(path, f"it has a column {next(iter(there))!r} that does not belong there")
    return table.select(schema.names).cast(schema)


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
        raise _unreadable(path, str(error)) from None
    if len(set(names)) < len(names):
        raise _unreadable(path, "two of its columns have one name")
    for name in columns or ():
        if name not in names:
            raise _unreadable(path, f"it has no column {name!r}")
    return table


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
        raise _unreadable(path, problem) from None


def _unreadable(path: Path, problem: str) -> InputError:
    return InputError(
        f"{path} is not what a run left there: {' '.join(problem.split())[:_SHOWN]}; remove it, and run the stage that "
        "writes it again"
    )


def read_plan(run_dir: Path) -> Plan:
    """The plan of a run.

    Raises:
        InputError: the run has not been planned, or the plan is damaged.
    """
    return read_json(run_dir / "plan.json", Plan, "the run has not been planned")


def write_shards(
    run_dir: Path, kind: Kind, rows: Sequence[dict[str, Any]], size: int, pool_version: str | None
) -> list[Shard]:
    """Cut one kind's REQUEST rows into shards of at most ``size`` and write them."""
    written = []
    for number, start in enumerate(range(0, len(rows), size)):
        piece = rows[start : start + size]
        shard = Shard(name=f"{kind}-{number:04d}", kind=kind, requests=len(piece), pool_version=pool_version)
        write_table(_shard_path(run_dir, shard.name), pa.Table.from_pylist(piece, REQUEST))
        written.append(shard)
    return written


def read_shard(run_dir: Path, shard: str) -> pa.Table:
    """A shard's requests.

    Raises:
        InputError: see :func:`read_table`.
    """
    return read_table(_shard_path(run_dir, shard), REQUEST)


def _shard_path(run_dir: Path, shard: str) -> Path:
    return run_dir / "shards" / f"{shard}.parquet"


def read_staged(run_dir: Path, shards: Iterable[str]) -> tuple[pa.Table, pa.Table]:
    """All written texts and all failed requests of some shards.

    Raises:
        InputError: see :func:`read_table`.
    """
    folders = [run_dir / "staged" / shard for shard in shards]
    return (
        _read_parts((part for folder in folders for part in sorted(folder.glob("part-*.parquet"))), KNOWLEDGE),
        _read_parts((part for folder in folders for part in sorted(folder.glob("failed-*.parquet"))), QUARANTINE),
    )


def engine_seconds(run_dir: Path, shards: Iterable[str]) -> float:
    """Seconds the engine worked on some shards' staged parts, over all tries."""
    return sum(part_seconds(part) for part in staged_parts(run_dir, shards))


def staged_parts(run_dir: Path, shards: Iterable[str]) -> Iterator[Path]:
    """The files of written texts of some shards, for readers that want a few columns of them."""
    return (part for shard in shards for part in sorted((run_dir / "staged" / shard).glob("part-*.parquet")))


def part_seconds(part: Path) -> float:
    """Seconds the engine worked on a staged part."""
    return float((pq.read_schema(part).metadata or {}).get(_SECONDS, 0))


def load_seconds(run_dir: Path, shards: Iterable[str]) -> float:
    """Seconds that loading and compiling the model took for some shards, as their workers said."""
    manifests = (read_manifest(run_dir / "staged" / shard) for shard in shards)
    return sum(float((manifest or {}).get("load_seconds", 0)) for manifest in manifests)


def write_part(staged: Path, number: int, rows: list[dict[str, Any]], seconds: float) -> None:
    """Stage KNOWLEDGE rows that took the engine ``seconds``."""
    table = pa.Table.from_pylist(rows, KNOWLEDGE).replace_schema_metadata({_SECONDS: str(seconds)})
    write_table(staged / f"part-{number:04d}.parquet", table)


def _read_parts(paths: Iterable[Path], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(read_table(path, schema) for path in paths)])


def read_manifest(staged: Path) -> dict[str, Any] | None:
    """What a worker said of its finished shard; None while it is not finished.

    Raises:
        InputError: the file is damaged.
    """
    path = staged / "manifest.json"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from None
    if not isinstance(content, dict):
        raise _unreadable(path, "it holds no object")
    return content
