"""Shards: work lists of entities, the plan that names them, their requests, and the staged parts that a worker leaves.

<run>/plan.json                      what is asked of the run; written last by planning
<run>/shards/<shard>.parquet         entities that are due (``schemas.SHARD``), sorted by group
<run>/requests/<shard>.parquet       what they are asked (``schemas.REQUEST``), once the shard is rendered
<run>/staged/<shard>/part-0000.parquet      written texts (``schemas.KNOWLEDGE``)
<run>/staged/<shard>/failed-0000.parquet    requests that could not be served (``schemas.QUARANTINE``)
<run>/staged/<shard>/manifest.json   written last by the worker
<run>/staged/<shard>/probe.json      how fast plain decoding would have been; of a kind's first shard, where measured
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from dare_core.config.domains import Framework
from dare_core.errors import InputError
from dare_core.knowledge.costs import Estimate, Funnel
from dare_core.knowledge.requests import Decoding
from dare_core.schemas import KNOWLEDGE, QUARANTINE, REQUEST, SHARD, Kind
from dare_core.storage import run_files

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
        """Texts to write at most: entities that are due."""
        return sum(shard.requests for shard in self.shards)

    def assignments(self, most: int) -> list[range]:
        """The shards in ``most`` runs of neighbours at most, as even as can be: what one task each works off."""
        count = min(most, len(self.shards))
        bounds = [len(self.shards) * number // count for number in range(count + 1)] if count else [0]
        return [range(first, end) for first, end in pairwise(bounds)]


def read_plan(run_dir: Path) -> Plan:
    """The plan of a run.

    Raises:
        InputError: the run has not been planned, or the plan is damaged.
    """
    return run_files.read_json(run_dir / "plan.json", Plan, "the run has not been planned")


def write_shards(
    run_dir: Path, kind: Kind, batches: Iterable[pa.RecordBatch], size: int, pool_version: str | None
) -> list[Shard]:
    """Cut one kind's rows of SHARD into shards of at most ``size`` and write them, as the rows come."""
    written = []
    for number, table in enumerate(_cut(batches, size)):
        shard = Shard(name=f"{kind}-{number:04d}", kind=kind, requests=len(table), pool_version=pool_version)
        run_files.write_table(_shard_path(run_dir, shard.name), table)
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


def entities(run_dir: Path, shard: str) -> Iterator[list[dict[str, Any]]]:
    """A shard's rows of SHARD, in pieces.

    Raises:
        InputError: see :func:`dare_core.storage.run_files.read_pieces`.
    """
    for piece in run_files.read_pieces(_shard_path(run_dir, shard), SHARD, _PIECE):
        yield piece.to_pylist()


def write_requests(run_dir: Path, shard: str, pieces: Iterable[pa.Table], settled: Mapping[str, int]) -> None:
    """Write what a shard's entities are asked, in schema REQUEST.

    Args:
        run_dir: the run's.
        shard: its name.
        pieces: of the requests.
        settled: how many of its entities need no text after all, by reason; read when the last piece has come.
    """
    run_files.write_pieces(
        _requests_path(run_dir, shard),
        pieces,
        REQUEST,
        lambda: {_SETTLED: json.dumps({reason: n for reason, n in settled.items() if n})},
    )


def is_rendered(run_dir: Path, shard: str) -> bool:
    """Whether what a shard's entities are asked is written down."""
    return _rendered(run_dir, shard) is not None


def _rendered(run_dir: Path, shard: str) -> Path | None:
    """The file of a shard's requests: up to release 0.1.0 it was the shard itself."""
    if (path := _requests_path(run_dir, shard)).exists():
        return path
    path = _shard_path(run_dir, shard)
    return path if "request_id" in run_files.read_names(path) else None


def settled(run_dir: Path, shard: str) -> Counter[str]:
    """How many of a shard's entities turned out to need no text, by reason; of one not rendered yet, none."""
    path = _requests_path(run_dir, shard)
    return Counter(json.loads(run_files.read_notes(path).get(_SETTLED, "{}"))) if path.exists() else Counter()


def funnels(run_dir: Path, plan: Plan) -> dict[Kind, Funnel]:
    """The plan's funnels, as far as its shards are rendered with what came of that."""
    found = {kind: Counter[str]() for kind in plan.funnel}
    for shard in plan.shards:
        found[shard.kind] += settled(run_dir, shard.name)
    return {kind: told.rendered(found[kind]) for kind, told in plan.funnel.items()}


def requests(run_dir: Path, shard: str) -> Iterator[pa.Table]:
    """A rendered shard's requests, in pieces.

    Raises:
        InputError: it is not rendered; see also :func:`dare_core.storage.run_files.read_pieces`.
    """
    if (path := _rendered(run_dir, shard)) is None:
        raise InputError(f"shard {shard} of {run_dir} has no requests yet: run the generation task that it belongs to")
    return run_files.read_pieces(path, REQUEST, _PIECE)


def read_requests(run_dir: Path, shard: str) -> pa.Table:
    """All of a rendered shard's requests.

    Raises:
        InputError: see :func:`requests`.
    """
    return pa.concat_tables([REQUEST.empty_table(), *requests(run_dir, shard)])


def _shard_path(run_dir: Path, shard: str) -> Path:
    return run_dir / "shards" / f"{shard}.parquet"


def _requests_path(run_dir: Path, shard: str) -> Path:
    return run_dir / "requests" / f"{shard}.parquet"


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


def answered(run_dir: Path, shard: str) -> set[str]:
    """Ids of a shard's requests that a staged part answers, or says the failure of."""
    parts = (run_dir / "staged" / shard).glob("*.parquet")
    return {row for part in parts for row in run_files.read_parquet(part, ["request_id"])["request_id"].to_pylist()}


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
    run_files.write_table(staged / f"part-{number:04d}.parquet", table)


def _read_parts(paths: Iterable[Path], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(run_files.read_table(path, schema) for path in paths)])


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
        raise run_files.unreadable(path, str(error)) from None
    if not isinstance(content, dict):
        raise run_files.unreadable(path, "it holds no object")
    return content
