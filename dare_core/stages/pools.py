"""New versions of retrieval pools, from their building to their being put in force."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from sqlalchemy import Engine

from dare_core import models
from dare_core.config.domains import load_domain
from dare_core.config.settings import Settings
from dare_core.pools import PoolManifest, PoolStore
from dare_core.pools.candidate import CandidateRegister
from dare_core.pools.probe import Probe, tokens_per_step
from dare_core.schemas import KINDS, Kind
from dare_core.stages.pooling import Build, refresh_pool
from dare_core.warehouse.knowledge import newest_texts
from dare_core.warehouse.pools import pool_store
from dare_core.warehouse.session import open_warehouse

#: The newest texts of a kind that a candidate is measured on.
PROBE_TEXTS: Final = 64


def build_candidates(settings: Settings, domain: str, kinds: Sequence[Kind] = KINDS) -> dict[str, dict[str, Any]]:
    """Build each kind's next pool version from what was loaded since the last, and measure it; none is put in force.

    Returns:
        By kind, where there is something new: the ``version`` and the ``current`` one (None before the first), its
        ``groups``, ``texts`` and ``tokens``, ``tokens_per_step`` and ``current_tokens_per_step`` on the newest texts
        (None where there is nothing to compare), and ``falls``: whether that is less by more than
        ``settings.max_acceptance_loss``.

    Raises:
        SettingError: there is no such domain.
        PoolError: see :func:`dare_core.stages.pooling.refresh_pool`.
    """
    load_domain(settings, domain)
    tokenizer = models.load_tokenizer(settings)
    build = Build(domain, models.tokenizer_hash(tokenizer), len(tokenizer))
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
