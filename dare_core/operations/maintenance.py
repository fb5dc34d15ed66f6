"""What `maintain` does, one function for each of its tasks; each can be run at any time and again."""

import shutil
import time
from typing import Any, Final

from dare_core.config.domains import domain_names
from dare_core.config.settings import Settings
from dare_core.errors import WarehouseError
from dare_core.pools import PoolStore, retention
from dare_core.schemas import KINDS
from dare_core.warehouse import quarantine, upkeep
from dare_core.warehouse.pools import pool_store
from dare_core.warehouse.runs import run_state
from dare_core.warehouse.session import open_warehouse

_DAY: Final = 24 * 3600.0


def expire_pools(settings: Settings) -> dict[str, Any]:
    """Remove old versions of every pool, candidates that were never put in force, and pins of runs that are over.

    Returns:
        By pool: the ``versions`` left, and how many of each were removed.
    """
    summary: dict[str, Any] = {}
    with open_warehouse(settings) as (_, engine):
        for domain in domain_names(settings):
            for kind in KINDS:
                store = pool_store(settings, engine, domain, kind)
                if not store.versions():
                    continue
                pins = 0
                for holder in store.register.pins():
                    run = run_state(engine, holder)
                    if run is None or run.state != "planned" or _is_old(settings, run.started_at.timestamp()):
                        store.unpin(holder)
                        pins += 1
                candidates = _remove_candidates(settings, store)
                expired = len(retention.expire(store, settings.keep_pool_versions))
                summary[f"{domain}/{kind}"] = {
                    "versions": len(store.versions()), "expired": expired, "candidates": candidates, "pins": pins
                }  # fmt: skip
    return summary


def expire_runs(settings: Settings) -> dict[str, Any]:
    """Remove the staged files of runs that nothing was written to for ``settings.keep_run_days``."""
    removed = size = 0
    folders = [path for path in (settings.data_dir / "runs").glob("*") if path.is_dir()]
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        if _is_old(settings, max(path.stat().st_mtime for path in (folder, *files))):
            size += sum(path.stat().st_size for path in files)
            shutil.rmtree(folder)
            removed += 1
    return {"removed": removed, "bytes": size, "left": len(folders) - removed}


def retry_quarantine(settings: Settings) -> dict[str, Any]:
    """Release texts that failed validation: the next run asks for them again, in a new epoch."""
    with open_warehouse(settings) as (_, engine):
        return {"released": quarantine.ask_again(engine, settings.quarantine_retries)}


def analyse_tables(settings: Settings) -> dict[str, Any]:
    """Fresh statistics for the warehouse's tables, and about how many rows they have."""
    with open_warehouse(settings) as (_, engine):
        return {"rows": upkeep.analyse(engine)}


def check_indexes(settings: Settings) -> dict[str, Any]:
    """Check that every index is there, valid and of a size that its entries explain.

    Raises:
        WarehouseError: one is not; says what to do.
    """
    with open_warehouse(settings) as (_, engine):
        health = upkeep.index_health(engine)
    remedies = [f"index {name} is missing: {_remedy(name)}" for name in health.missing]
    for what, names in (("invalid", health.invalid), ("bloated", health.bloated)):
        remedies += [f"index {name} is {what}: REINDEX INDEX CONCURRENTLY {name}" for name in names]
    if remedies:
        raise WarehouseError("; ".join(remedies))
    return {"indexes": health.indexes}


def _remedy(index: str) -> str:
    if index.endswith("_nearest"):  # of vectors
        return "SELECT knowledge.index_vectors(), as the next load does"
    return "create it as sql/migrations does"


def _remove_candidates(settings: Settings, store: PoolStore) -> int:
    """The manifests of versions that no register knows; what only they name goes when versions are expired."""
    known = set(store.versions())
    removed = 0
    for name, written in store.files.names("versions").items():
        if name.endswith(".json") and name.removesuffix(".json") not in known and _is_old(settings, written):
            store.files.remove(f"versions/{name}")
            removed += 1
    return removed


def _is_old(settings: Settings, moment: float) -> bool:
    return time.time() - moment > settings.keep_run_days * _DAY
