"""What `maintain` does, one function for each of its tasks; each can be run at any time and again."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from dare_core.config.domains import domain_names
from dare_core.config.settings import Settings
from dare_core.errors import WarehouseError
from dare_core.operations import alerts
from dare_core.pools import PoolStore, retention
from dare_core.quality import data_docs
from dare_core.schemas import KINDS
from dare_core.storage.atomic import is_scratch, scratch_name
from dare_core.storage.locations import Location, files_below, files_in, is_folder, matching, remove, remove_folder
from dare_core.warehouse import leases, quarantine, upkeep
from dare_core.warehouse.pools import pool_store
from dare_core.warehouse.runs import run_state
from dare_core.warehouse.session import open_warehouse

_DAY: Final = 24 * 3600.0
#: A folder that was changed less long ago may be about to get a file.
_FRESH: Final = 3600.0


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
    """Remove the files of runs that nothing was written to for ``settings.keep_run_days``, reports included.

    A run that is under way stays, however long it has waited.
    """
    removed = size = 0
    busy = _under_way(settings)
    folders = [path for path in matching(settings.runs_dir) if is_folder(path)]
    for folder in folders:
        if folder.name in busy:
            continue
        files = files_below(folder)
        written = [file.written for file in files] + ([folder.stat().st_mtime] if isinstance(folder, Path) else [])
        if _is_old(settings, max(written, default=0.0)):
            _remove_run(folder)
            size += sum(file.size for file in files)
            removed += 1
    return {"removed": removed, "bytes": size, "left": len(folders) - removed}


def _remove_run(folder: Location) -> None:
    """Remove a run's folder. What breaks off is no run any more, and as old: it is removed the next time."""
    if isinstance(folder, Path):
        folder = folder if is_scratch(folder.name) else folder.rename(scratch_name(folder))
        os.utime(folder, (0, 0))
    else:
        remove(folder / "plan.json")
    remove_folder(folder)


def expire_data_docs(settings: Settings) -> dict[str, Any]:
    """Remove Great Expectations' results and pages of runs that were checked ``keep_data_docs_days`` ago."""
    before = time.time() - settings.keep_data_docs_days * _DAY
    return {"removed": data_docs.expire(settings.data_docs_dir, before, _under_way(settings))}


def expire_files(settings: Settings) -> dict[str, Any]:
    """Remove what evaluations wrote and no longer use, log files that nobody writes to any more, and old alerts.

    Returns:
        How many files of ``evaluation`` and ``logs``, and lines of ``alerts``, were removed.
    """
    evaluated = [
        file
        for domain in matching(settings.shared / "evaluation")
        for file in files_in(settings.evaluation_dir(domain.name))
        if time.time() - file.written > settings.keep_evaluation_days * _DAY
    ]
    for file in evaluated:
        remove(file.path)
    logs, vllm = settings.data_dir / "airflow" / "logs", settings.data_dir / "vllm"
    return {
        "evaluation": len(evaluated),
        # Of Airflow's components each has one file, which it keeps open, beside the folders of its tasks.
        "logs": _remove_old((*logs.glob("*/**/*"), *vllm.glob("*.log")), settings.keep_log_days),
        "alerts": alerts.expire_alerts(settings)["removed"],
    }


def _remove_old(paths: Iterable[Path], days: float) -> int:
    """Remove the files that nobody wrote to for so long, and the folders that this leaves empty."""
    removed = 0
    for path in sorted(paths, reverse=True):  # a folder after what is in it
        with suppress(OSError):  # somebody else was quicker, or has written into the folder
            if path.is_dir() and not path.is_symlink():
                if time.time() - path.stat().st_mtime > _FRESH:
                    path.rmdir()
            elif time.time() - path.lstat().st_mtime > days * _DAY:
                path.unlink()
                removed += 1
    return removed


def _under_way(settings: Settings) -> set[str]:
    """Runs that somebody is at, or that wait for their next stage."""
    with open_warehouse(settings) as (_, engine):
        return {run.run_id for run in leases.under_way(engine, None, timedelta(hours=settings.deadline_hours))}


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
