"""Shards: work lists of entities, the plan that names them, their requests, and the staged parts that a worker leaves.

<run>/plan.json                      what is asked of the run; written last by planning
<run>/shards/<shard>.parquet         entities that are due (``schemas.SHARD``), sorted by group
<run>/requests/<shard>.parquet       what they are asked (``schemas.REQUEST``, or ``CHAT_REQUEST``), once it is rendered
<run>/staged/<shard>/part-0000-<try>.parquet      written texts (``schemas.KNOWLEDGE``)
<run>/staged/<shard>/failed-0000-<try>.parquet    requests that could not be served (``schemas.QUARANTINE``)
<run>/staged/<shard>/manifest-<try>.json          written last by the worker
<run>/staged/<shard>/probe.json      how fast plain decoding would have been; of a kind's first shard, where measured

A try that was thought dead may write on beside the next one: each has names of its own, and of two answers to one
request the first counts.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from dare_core.config.domains import Framework
from dare_core.errors import InputError
from dare_core.knowledge.costs import Estimate, Funnel
from dare_core.knowledge.requests import Decoding
from dare_core.schemas import CHAT_REQUEST, KNOWLEDGE, QUARANTINE, REQUEST, SHARD, Kind
from dare_core.storage import run_files
from dare_core.storage.locations import Location, exists, fetched, matching, read_bytes

_SECONDS: Final = b"engine_seconds"
_SETTLED: Final = "settled"
_PIECE: Final = 256  # rows in memory at once


class Shard(BaseModel):
    """A work list of one kind.

    Attributes:
        requests: entities of the shard; some turn out to need no text.
        pool_version: pinned; None where there was no pool when the run was planned.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=r"^[a-z]+-[0-9]+$", description="names files and a folder")
    kind: Kind
    requests: int
    pool_version: str | None


class Plan(BaseModel):
    """What a run does, fixed when it is planned, so that its later stages agree whatever settings say by then.

    Attributes:
        endpoint: the URL of the server that was to write the texts when the run was planned; None: no server.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    domain: str
    framework: Framework
    decoding: Decoding
    started_at: datetime
    shards: list[Shard]
    funnel: dict[Kind, Funnel]
    estimate: Estimate
    endpoint: str | None = None

    @property
    def requests(self) -> int:
        """Texts to write at most: entities that are due."""
        return sum(shard.requests for shard in self.shards)

    def assignments(self, most: int) -> list[range]:
        """The shards in ``most`` runs of neighbours at most, as even as can be: what one task each works off."""
        count = min(most, len(self.shards))
        bounds = [len(self.shards) * number // count for number in range(count + 1)] if count else [0]
        return [range(first, end) for first, end in pairwise(bounds)]


def read_plan(run_dir: Location) -> Plan:
    """The plan of a run.

    Raises:
        InputError: the run has not been planned, or the plan is damaged.
    """
    return run_files.read_json(run_dir / "plan.json", Plan, "the run has not been planned")


def write_shards(
    run_dir: Location, kind: Kind, batches: Iterable[pa.RecordBatch], size: int, pool_version: str | None
) -> list[Shard]:
    """Cut one kind's rows of SHARD into shards of at most ``size`` and write them, as the rows come."""
    written = []
    for number, table in enumerate(_cut(batches, size)):
        shard = Shard(name=f"{kind}-{number:04d}", kind=kind, requests=len(table), pool_version=pool_version)
        run_files.write_table(shard_path(run_dir, shard.name), table)
        written.append(shard)
    return written


def _cut(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        while sum(map(len, held)) >= size:
            table = pa.Table.from_batches(held)
            yield table.slice(0, size)
            held = table.slice(size).to_batches()
    if any(map(len, held)):
        yield pa.Table.from_batches(held)


def entities(run_dir: Location, shard: str) -> Iterator[list[dict[str, Any]]]:
    """A shard's rows of SHARD, in pieces.

    Raises:
        InputError: see :func:`dare_core.storage.run_files.read_pieces`.
    """
    for piece in run_files.read_pieces(shard_path(run_dir, shard), SHARD, _PIECE):
        yield piece.to_pylist()


def request_schema(decoding: Decoding) -> pa.Schema:
    """The columns of a run's requests."""
    return CHAT_REQUEST if decoding.is_remote else REQUEST


def write_requests(
    run_dir: Location, shard: str, pieces: Iterable[pa.Table], schema: pa.Schema, settled: Mapping[str, int]
) -> None:
    """Write what a shard's entities are asked.

    Args:
        run_dir: the run's.
        shard: its name.
        pieces: of the requests.
        schema: theirs; see :func:`request_schema`.
        settled: how many of its entities need no text after all, by reason; read when the last piece has come.
    """
    run_files.write_pieces(
        _requests_path(run_dir, shard),
        pieces,
        schema,
        lambda: {_SETTLED: json.dumps({reason: n for reason, n in settled.items() if n})},
    )


def is_rendered(run_dir: Location, shard: str) -> bool:
    """Whether what a shard's entities are asked is written down."""
    return _rendered(run_dir, shard) is not None


def _rendered(run_dir: Location, shard: str) -> Location | None:
    """The file of a shard's requests: up to release 0.1.0 it was the shard itself."""
    if exists(path := _requests_path(run_dir, shard)):
        return path
    path = shard_path(run_dir, shard)
    return path if "request_id" in run_files.read_names(path) else None


def settled(run_dir: Location, shard: str) -> Counter[str]:
    """How many of a shard's entities turned out to need no text, by reason; of one not rendered yet, none."""
    path = _requests_path(run_dir, shard)
    return Counter(json.loads(run_files.read_notes(path).get(_SETTLED, "{}"))) if exists(path) else Counter()


def funnels(run_dir: Location, plan: Plan) -> dict[Kind, Funnel]:
    """The plan's funnels, as far as its shards are rendered with what came of that."""
    found = {kind: Counter[str]() for kind in plan.funnel}
    for shard in plan.shards:
        found[shard.kind] += settled(run_dir, shard.name)
    return {kind: told.rendered(found[kind]) for kind, told in plan.funnel.items()}


def requests(run_dir: Location, shard: str) -> Iterator[pa.Table]:
    """A rendered shard's requests, in pieces of :func:`request_schema`.

    Raises:
        InputError: it is not rendered; see also :func:`dare_core.storage.run_files.read_pieces`.
    """
    if (path := _rendered(run_dir, shard)) is None:
        raise InputError(f"shard {shard} of {run_dir} has no requests yet: run the generation task that it belongs to")
    schema = CHAT_REQUEST if "message" in run_files.read_names(path) else REQUEST
    return run_files.read_pieces(path, schema, _PIECE)


def read_requests(run_dir: Location, shard: str) -> pa.Table:
    """All of a rendered shard's requests, in schema REQUEST.

    Raises:
        InputError: see :func:`requests`.
    """
    pieces = (piece.select(REQUEST.names) for piece in requests(run_dir, shard))
    return pa.concat_tables([REQUEST.empty_table(), *pieces])


def shard_path(run_dir: Location, shard: str) -> Location:
    """Where a shard's work list lies."""
    return run_dir / "shards" / f"{shard}.parquet"


def _requests_path(run_dir: Location, shard: str) -> Location:
    return run_dir / "requests" / f"{shard}.parquet"


def read_staged(run_dir: Location, shards: Iterable[str]) -> tuple[pa.Table, pa.Table]:
    """All written texts and all failed requests of some shards, of each request one.

    Raises:
        InputError: see :func:`read_table`.
    """
    names = list(shards)
    seen = set[str]()
    written = _read_parts(staged_parts(run_dir, names), KNOWLEDGE, seen)
    failed = (part for name in names for part in matching(staged_folder(run_dir, name), "failed-*.parquet"))
    return written, _read_parts(failed, QUARANTINE, seen)


def staged_folder(run_dir: Location, shard: str) -> Location:
    """Where a shard's staged parts lie."""
    return run_dir / "staged" / shard


def answered(run_dir: Location, shard: str) -> set[str]:
    """Ids of a shard's requests that a staged part answers, or says the failure of."""
    parts = matching(staged_folder(run_dir, shard), "*.parquet")
    return {row for part in parts for row in run_files.read_parquet(part, ["request_id"])["request_id"].to_pylist()}


def engine_seconds(run_dir: Location, shards: Iterable[str]) -> float:
    """Seconds the engine worked on some shards' staged parts, over all tries."""
    return sum(part_seconds(part) for part in staged_parts(run_dir, shards))


def staged_parts(run_dir: Location, shards: Iterable[str]) -> Iterator[Location]:
    """The files of written texts of some shards, for readers that want a few columns of them."""
    return (part for shard in shards for part in matching(staged_folder(run_dir, shard), "part-*.parquet"))


def part_seconds(part: Location) -> float:
    """Seconds the engine worked on a staged part."""
    with fetched(part) as local:
        return float((pq.read_schema(local).metadata or {}).get(_SECONDS, 0))


def load_seconds(run_dir: Location, shards: Iterable[str]) -> float:
    """Seconds that loading and compiling the model took for some shards, as their workers said."""
    manifests = (read_manifest(staged_folder(run_dir, shard)) for shard in shards)
    return sum(float((manifest or {}).get("load_seconds", 0)) for manifest in manifests)


def write_part(
    staged: Location,
    number: int,
    attempt: str,
    rows: list[dict[str, Any]],
    failures: list[dict[str, Any]],
    seconds: float,
) -> None:
    """Stage KNOWLEDGE rows that took the engine ``seconds``, and QUARANTINE rows of what failed meanwhile.

    Args:
        staged: the shard's folder.
        number: of the checkpoint.
        attempt: who writes, see :func:`dare_core.storage.run_files.new_attempt`.
    """
    name = f"{number:04d}-{attempt}.parquet"
    table = pa.Table.from_pylist(rows, KNOWLEDGE).replace_schema_metadata({_SECONDS: str(seconds)})
    run_files.write_table(staged / f"part-{name}", table)
    if failures:
        run_files.write_table(staged / f"failed-{name}", pa.Table.from_pylist(failures, QUARANTINE))


def write_manifest(staged: Location, attempt: str, manifest: Mapping[str, Any]) -> None:
    """Say that a shard is written."""
    run_files.write_json(staged / f"manifest-{attempt}.json", json.dumps(manifest))


def _read_parts(paths: Iterable[Location], schema: pa.Schema, seen: set[str]) -> pa.Table:
    """The rows of some files whose requests were not seen, which they are then."""
    tables = [schema.empty_table()]
    for path in paths:
        table = run_files.read_table(path, schema)
        ids = table["request_id"].to_pylist()
        if seen.isdisjoint(ids):
            tables.append(table)
        else:
            tables.append(table.filter(pa.array([row not in seen for row in ids])))
        seen.update(ids)
    return pa.concat_tables(tables)


def read_manifest(staged: Location) -> dict[str, Any] | None:
    """What a worker said of its finished shard; None while it is not finished.

    Raises:
        InputError: the file is damaged.
    """
    manifests = matching(staged, "manifest*.json")
    if not manifests:
        return None
    path = manifests[-1]
    try:
        content = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:
        raise run_files.unreadable(path, str(error)) from None
    if not isinstance(content, dict):
        raise run_files.unreadable(path, "it holds no object")
    return content
