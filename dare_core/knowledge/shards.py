"""Shards: work lists of requests, the plan that names them, and the staged parts that a worker leaves.

<run>/plan.json                      what is asked of the run; written last by planning
<run>/shards/<shard>.parquet         the requests, sorted by group
<run>/staged/<shard>/part-0000.parquet      written texts (``schemas.KNOWLEDGE``)
<run>/staged/<shard>/failed-0000.parquet    requests that could not be served (``schemas.QUARANTINE``)
<run>/staged/<shard>/manifest.json   written last by the worker
<run>/staged/<shard>/probe.json      how fast plain decoding would have been; of a kind's first shard, where measured
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from dare_core.config.domains import Framework
from dare_core.knowledge.costs import Estimate, Funnel
from dare_core.knowledge.requests import Decoding
from dare_core.schemas import KNOWLEDGE, QUARANTINE, REQUEST, Kind
from dare_core.storage import run_files

_SECONDS: Final = b"engine_seconds"


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


def read_plan(run_dir: Path) -> Plan:
    """The plan of a run.

    Raises:
        InputError: the run has not been planned, or the plan is damaged.
    """
    return run_files.read_json(run_dir / "plan.json", Plan, "the run has not been planned")


def write_shards(
    run_dir: Path, kind: Kind, rows: Sequence[dict[str, Any]], size: int, pool_version: str | None
) -> list[Shard]:
    """Cut one kind's REQUEST rows into shards of at most ``size`` and write them."""
    written = []
    for number, start in enumerate(range(0, len(rows), size)):
        piece = rows[start : start + size]
        shard = Shard(name=f"{kind}-{number:04d}", kind=kind, requests=len(piece), pool_version=pool_version)
        run_files.write_table(_shard_path(run_dir, shard.name), pa.Table.from_pylist(piece, REQUEST))
        written.append(shard)
    return written


def read_shard(run_dir: Path, shard: str) -> pa.Table:
    """A shard's requests.

    Raises:
        InputError: see :func:`read_table`.
    """
    return run_files.read_table(_shard_path(run_dir, shard), REQUEST)


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
