"""From loaded knowledge to the next version of a retrieval pool: what was loaded since the last build is added to it.

A version is a candidate until it is put in force. Few texts are indexed here; many by ``spark_jobs/build_pools.py``.
Both make the same pool.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import Engine

from dare_core import models
from dare_core.config.domains import load_domain
from dare_core.config.settings import Settings
from dare_core.pools import Limits, PoolBuilder, PoolManifest, PoolStore
from dare_core.pools.builder import Grown
from dare_core.pools.probe import Probe, tokens_per_step
from dare_core.pools.register import CandidateRegister
from dare_core.pools.segments import SegmentEntry
from dare_core.schemas import KINDS, Kind
from dare_core.sources.spark_submit import submit
from dare_core.stages.request import RunRequest
from dare_core.warehouse.group_models import WarehousePointer
from dare_core.warehouse.knowledge import newest_texts, pool_loads, pool_texts
from dare_core.warehouse.pools import pool_store
from dare_core.warehouse.session import open_warehouse

#: The newest texts of a kind that a candidate is measured on.
PROBE_TEXTS: Final = 64

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


def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Add what was loaded since to each kind's retrieval pool, and put that version in force.

    A version whose drafts would be accepted less, by more than ``settings.max_acceptance_loss``, is not put in force:
    see ``falls`` of :func:`build_candidates`, whose findings are returned.
    """
    candidates = build_candidates(settings, request.domain, request.kinds)
    promoted = {kind: found for kind, found in candidates.items() if not found["falls"]}
    publish_candidates(settings, request.domain, promoted)
    return candidates


def build_candidates(settings: Settings, domain: str, kinds: Sequence[Kind] = KINDS) -> dict[str, dict[str, Any]]:
    """Build each kind's next pool version from what was loaded since the last, and measure it; none is put in force.

    Returns:
        By kind, where there is something new: the ``version`` and the ``current`` one (None before the first), its
        ``groups``, ``texts`` and ``tokens``, ``tokens_per_step`` and ``current_tokens_per_step`` on the newest texts
        (None where there is nothing to compare), and ``falls``: whether that is less by more than
        ``settings.max_acceptance_loss``.

    Raises:
        SettingError: there is no such domain.
        PoolError: see :func:`refresh_pool`.
    """
    load_domain(settings, domain)
    tokenizer = models.load_tokenizer(settings)
    build = Build(domain, models.tokenizer_hash(tokenizer), models.vocabulary_size(settings))
    candidates: dict[str, dict[str, Any]] = {}
    with open_warehouse(settings) as (url, engine):
        for kind in kinds:
            store = pool_store(settings, engine, domain, kind)
            versions = store.versions()
            current = store.manifest(versions[0]) if versions else None
            store.register = CandidateRegister(store.register)
            manifest = refresh_pool(settings, url, engine, store, build, kind)
            if manifest is None or (current and manifest.version == current.version):
                continue
            candidates[kind] = {
                "version": manifest.version,
                "current": current and current.version,
                "groups": len(manifest.groups) - 1,
                "texts": manifest.texts,
                "tokens": manifest.tokens,
                **_compare(settings, engine, store, build, kind, manifest, current),
            }
    return candidates


def publish_candidates(settings: Settings, domain: str, candidates: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Put candidates in force; one that is already stays.

    Returns:
        The versions in force, by kind.

    Raises:
        PoolError: another version than the one that the candidate was measured against is in force by now.
    """
    with open_warehouse(settings) as (_, engine):
        for kind in KINDS:
            if found := candidates.get(kind):
                store = pool_store(settings, engine, domain, kind)
                if store.versions()[:1] != [found["version"]]:
                    store.register.publish(store.manifest(found["version"]), found["current"])
    return {kind: found["version"] for kind, found in candidates.items()}


def _compare(
    settings: Settings,
    engine: Engine,
    store: PoolStore,
    build: Build,
    kind: Kind,
    candidate: PoolManifest,
    current: PoolManifest | None,
) -> dict[str, Any]:
    if current is None or current.tokenizer_hash != candidate.tokenizer_hash:
        return {"tokens_per_step": None, "current_tokens_per_step": None, "falls": False}
    newest = newest_texts(engine, build.domain, kind, build.tokenizer_hash, PROBE_TEXTS)
    probe = Probe(
        [np.array(ids, np.int32) for ids in newest["token_ids"].to_pylist()],
        newest["group"].to_pylist(),
        newest["entity_id"].to_pylist(),
    )
    after, before = (tokens_per_step(store, version, probe, settings.draft_nodes) for version in (candidate, current))
    return {
        "tokens_per_step": round(after, 3),
        "current_tokens_per_step": round(before, 3),
        "falls": after < before * (1 - settings.max_acceptance_loss),
    }


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
    limits = Limits(settings.pool_group_mb * 1_000_000, settings.pool_text_days)
    builder = PoolBuilder(store, settings.model, build.tokenizer_hash, build.vocabulary, scheme, limits)
    if loads.texts < settings.spark_pool_texts:
        texts = pool_texts(engine, build.domain, kind, build.tokenizer_hash, since, loads.newest)
        manifest = builder.add(texts) if base else builder.build(texts)
    else:
        onto, in_force = base.version if base else None, before.version if before else None
        window = [*(("--since", (since + _TICK).isoformat()) if since else ()), "--until", loads.newest.isoformat()]
        grown, samples, halvings = _grown_by_spark(settings, url, store, build, kind, limits, window, onto, in_force)
        manifest = builder.publish_grown(grown, samples, halvings, onto, in_force)
    _write_mark(store, manifest.version, _Mark(loads.newest, loads.earlier + loads.texts))
    return manifest


def _grown_by_spark(
    settings: Settings,
    url: str,
    store: PoolStore,
    build: Build,
    kind: Kind,
    limits: Limits,
    window: Sequence[str],
    onto: str | None,
    in_force: str | None,
) -> tuple[list[Grown], list[SegmentEntry], int]:
    """What :meth:`PoolBuilder.publish_grown` asks for, made by Spark."""
    with TemporaryDirectory(prefix="dare-segments-") as folder:
        out = Path(folder) / "grown.json"
        arguments = [
            *("--pool", store.location),
            *("--vocabulary", str(build.vocabulary)),
            *("--domain", build.domain),
            *("--kind", kind),
            *("--tokenizer-hash", build.tokenizer_hash),
            *window,
            "--grow",
            *(("--onto", onto) if onto else ()),
            *(("--before", in_force) if in_force else ()),
            *(("--group-bytes", str(limits.group_bytes)) if limits.group_bytes is not None else ()),
            *(("--text-days", str(limits.max_age_days)) if limits.max_age_days is not None else ()),
            *("--out", str(out)),
        ]
        submit(settings, "build_pools", arguments, url)
        return read_grown(json.loads(out.read_text("utf-8")))


def read_grown(made: Mapping[str, Any]) -> tuple[list[Grown], list[SegmentEntry], int]:
    """Groups that have grown, samples of their new texts, and halvings, of what ``build_pools --grow`` wrote."""
    grown = [
        Grown(group["group"], _entries(group["segments"]), _entries(group["new"]), tuple(group["written"]))
        for group in made["grown"]
    ]
    return grown, [*_entries(made["samples"])], made["halvings"]


def _entries(rows: Sequence[Mapping[str, Any]]) -> tuple[SegmentEntry, ...]:
    return tuple(SegmentEntry(**row) for row in rows)


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
