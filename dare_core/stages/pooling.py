"""From loaded knowledge to the next version of a retrieval pool: what was loaded since the last build is added to it.

Few texts are indexed here; many by ``spark_jobs/build_pools.py``. Both make the same pool.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.pools import PoolManifest, PoolStore
from dare_core.pools.segments import SegmentEntry
from dare_core.schemas import Kind
from dare_core.sources.spark_submit import submit
from dare_core.warehouse.group_models import WarehousePointer
from dare_core.warehouse.knowledge import pool_loads, pool_texts

#: The database's clock ticks in these; a window that includes its ends begins one later to leave one out.
_TICK: Final = timedelta(microseconds=1)


class Build(NamedTuple):
    """What pools of one domain are built for.

    Attributes:
        domain: the domain's name.
        tokenizer_hash: what token ids mean; texts of another tokenizer are left out.
        vocabulary: token ids are below it.
    """

    domain: str
    tokenizer_hash: str
    vocabulary: int


def refresh_pool(
    settings: Settings, url: str, engine: Engine, store: PoolStore, build: Build, kind: Kind
) -> PoolManifest | None:
    """Put a version in force that holds what has been loaded.

    Args:
        url: of the warehouse, for Spark.
        engine: the warehouse.
        store: of the kind's pool.
        build: what the pool is for.

    Returns:
        The version, which is the one before when nothing was loaded since; None when nothing ever was.

    Raises:
        PoolError: a token id is out of range, something cannot be written, or another builder has published meanwhile.
            The version before stays in force.
    """
    versions = store.versions()
    before = store.manifest(versions[0]) if versions else None
    # Texts of another tokenizer are of no more use.
    base = before if before and before.tokenizer_hash == build.tokenizer_hash else None
    mark = _read_mark(store, base.version) if base else None
    since = mark.newest if mark else None
    loads = pool_loads(engine, build.domain, kind, build.tokenizer_hash, since)
    if mark and loads.earlier != mark.texts:  # the clock was set back, or texts were removed
        since = None
        loads = pool_loads(engine, build.domain, kind, build.tokenizer_hash)
    if loads.newest is None:
        return base
    scheme = WarehousePointer(engine, build.domain, kind, store.location).read() or ""
    facts = (settings.model, build.tokenizer_hash, build.vocabulary, scheme)
    if loads.texts < settings.spark_pool_texts:
        texts = pool_texts(engine, build.domain, kind, build.tokenizer_hash, since, loads.newest)
        manifest = store.add(texts, *facts) if base else store.build(texts, *facts)
    else:
        segments = _segments_by_spark(settings, url, store, build, kind, since, loads.newest)
        manifest = store.publish(
            segments,
            *facts,
            onto=base.version if base else None,
            replacing=before.version if before else None,
        )
    _write_mark(store, manifest.version, _Mark(loads.newest, loads.earlier + loads.texts))
    return manifest


def _segments_by_spark(
    settings: Settings,
    url: str,
    store: PoolStore,
    build: Build,
    kind: Kind,
    since: datetime | None,
    until: datetime,
) -> dict[str, list[SegmentEntry]]:
    with TemporaryDirectory(prefix="dare-segments-") as folder:
        out = Path(folder) / "segments.json"
        arguments = [
            *("--pool", store.location),
            *("--vocabulary", str(build.vocabulary)),
            *("--domain", build.domain),
            *("--kind", kind),
            *("--tokenizer-hash", build.tokenizer_hash),
            *(("--since", (since + _TICK).isoformat()) if since else ()),
            *("--until", until.isoformat()),
            *("--out", str(out)),
        ]
        submit(settings, "build_pools", arguments, url)
        listed = json.loads(out.read_text("utf-8"))
    segments: dict[str, list[SegmentEntry]] = {}
    for row in listed:
        segments.setdefault(row.pop("group"), []).append(SegmentEntry(**row))
    return segments


# A version's mark is a file beside it: the time of the newest load that it holds, and how many texts were loaded by
# then. It is written after the version is in force: without it, or where the number is another by now, everything is
# read again, and what the pool has already is left out.


class _Mark(NamedTuple):
    newest: datetime
    texts: int


def _mark(version: str) -> str:
    return f"loaded/{version}"


def _read_mark(store: PoolStore, version: str) -> _Mark | None:
    try:
        newest, texts = store.files.read(_mark(version)).decode().split()
        return _Mark(datetime.fromisoformat(newest), int(texts))
    except (FileNotFoundError, ValueError):
        return None


def _write_mark(store: PoolStore, version: str, mark: _Mark) -> None:
    store.files.write(_mark(version), f"{mark.newest.isoformat()} {mark.texts}".encode())
