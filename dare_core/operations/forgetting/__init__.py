"""``dare forget``: an entity is removed from everything that the platform keeps, and then looked for everywhere.

The order makes a broken-off try safe to repeat: first what is known of the entity is written down, then rows go from
the warehouse in one transaction, then texts from pools and group models, then files. What was written down goes last,
once nothing was found. It lies on the shared storage, so that any machine goes on.

<storage>/forgetting/<hash>.json    what is being looked for; there while a try is unfinished
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine

from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.grouping import GroupModelStore
from dare_core.operations.forgetting import clean, find, prove
from dare_core.operations.forgetting.files import JOURNAL, DataFiles
from dare_core.operations.forgetting.traces import Entities, Sought, Traces, shown, storable
from dare_core.pools import retention
from dare_core.pools.files import KEPT_UNREAD_SECONDS
from dare_core.schemas import KINDS
from dare_core.stages.request import RunRequest
from dare_core.storage.atomic import write_atomically
from dare_core.storage.locations import exists, read_bytes, remove
from dare_core.warehouse import leases
from dare_core.warehouse.group_models import WarehousePointer
from dare_core.warehouse.imported import source_copies
from dare_core.warehouse.pools import pool_store
from dare_core.warehouse.runs import record_run, unfinished_runs
from dare_core.warehouse.server import cluster
from dare_core.warehouse.session import open_warehouse

#: Said where machines share a storage.
_OTHER_MACHINES: Final = (
    "the data folders of other machines, which hold logs, and copies of pools' segments that nobody opens any more: "
    "run the same there, or remove their pool_cache; a machine that goes on fetching segments drops what it has not "
    f"read for {KEPT_UNREAD_SECONDS // 86_400} days"
)


@dataclass(frozen=True)
class Forgotten:
    """What was done, what was searched, and what was found all the same.

    Attributes:
        rows: removed or changed, by table.
        pool_versions: removed, of the kind's retrieval pool.
        group_models: versions removed.
        files: changed, removed or written anew: below ``data_dir``, or on the shared storage by their whole names.
        tables, columns, searched_rows: what of the warehouse was searched.
        searched_files, searched_bytes: what of ``data_dir`` and the shared storage; the bytes as they are stored.
        searched_segments: segments of retrieval pools.
        found: where something was found; empty when the entities are forgotten.
        out_of_reach: what may hold them and is not the platform's to remove.
    """

    rows: Mapping[str, int]
    pool_versions: list[str]
    group_models: list[str]
    files: list[str]
    tables: int
    columns: int
    searched_rows: int
    searched_files: int
    searched_bytes: int
    searched_segments: int
    found: list[str]
    out_of_reach: list[str]


def forget(settings: Settings, who: Entities, on_step: Callable[[str], None] = lambda step: None) -> Forgotten:
    """Remove entities from the warehouse, pools, group models, files and reports, and prove it by search.

    Run again it removes what is left, and searches again. Later pulls leave the entities out.

    Args:
        settings: in force.
        who: the entities.
        on_step: told what begins.

    Raises:
        InputError: an id is not known, or a run of the domain is in progress.
        SettingError: there is no such domain.
        PoolError: the pool or group model in force is damaged, or somebody else publishes a pool meanwhile.
        StorageError: the shared storage cannot be reached, or a file cannot be written.
        WarehouseError: the warehouse breaks off.
    """
    domain = load_domain(settings, who.domain)
    with open_warehouse(settings) as (_, engine):
        refuse_runs(settings, engine, domain.name)
        copies = source_copies(engine, domain.source, who.kind)
        if strangers := find.unknown(engine, who, copies):
            raise InputError(
                f"{domain.name} has no {who.kind} {shown(strangers)}; ids are those of the source table "
                f"{_section(domain, who).table!r}, column {_section(domain, who).id!r}"
            )
        on_step("gathering what is known")
        files = DataFiles(settings, engine, domain, who)
        traces = find.traces(engine, who, files)
        journals = [place / JOURNAL / f"{_digest(who)}.json" for place in files.places]
        for journal in filter(exists, journals):  # an earlier one is elsewhere where the storage was moved since
            traces |= Traces.of_json(read_bytes(journal))
        write_atomically(journals[-1], traces.to_json().encode())

        on_step("removing rows")
        removed = clean.remove_rows(engine, who, copies)
        on_step("rebuilding pools and group models without them")
        versions = retention.purge(
            pool_store(settings, engine, domain.name, who.kind), who.ids, sorted(traces.token_ids)
        )
        models = _group_models(settings, engine, domain).purge(**_grouped(who))
        on_step("cleaning files")
        changed = clean.clean_files(settings, engine, files, traces)
        embedded = settings.warehouse_url is None
        clean.vacuum(engine, copies, embedded)

        on_step("searching")
        of_tables = prove.search_tables(engine, sought_in_tables(who, traces), copies)
        of_files = prove.search_files(files, traces)
        of_models = [f"group model {name}" for name in _group_models(settings, engine, domain).holding(**_grouped(who))]
        found = [*of_tables.found, *of_models, *of_files.found]
        searched = [of_files]
        if embedded:
            searched.append(
                prove.search_cluster(engine, cluster(settings), Sought(who, replace(traces, titles=frozenset())))
            )
            found += searched[-1].found
    if not found:
        for journal in journals:
            remove(journal)
    return Forgotten(
        rows={table: count for table, count in removed.items() if count},
        pool_versions=versions,
        group_models=models,
        files=sorted(changed),
        tables=of_tables.tables,
        columns=of_tables.columns,
        searched_rows=of_tables.rows,
        searched_files=sum(part.files for part in searched),
        searched_bytes=sum(part.size for part in searched),
        searched_segments=of_files.segments,
        found=found,
        out_of_reach=_out_of_reach(domain, who, bool(copies), embedded, len(files.places) > 1),
    )


def sought_in_tables(who: Entities, traces: Traces) -> Sought:
    """What is looked for in the warehouse, as it holds texts."""
    return Sought(who, replace(traces, texts=frozenset(map(storable, traces.texts))))


def refuse_runs(settings: Settings, engine: Engine, domain: str) -> None:
    """A run that is under way holds entities in memory and would write them again; one that crashed is marked failed.

    Raises:
        InputError: there are some of this domain; names them all and says what to do.
    """
    found = leases.under_way(engine, domain, timedelta(hours=settings.deadline_hours))
    under_way = [run for run in found if exists(settings.run_dir(run.run_id))]
    for run_id in set(unfinished_runs(engine, domain)).difference(run.run_id for run in under_way):
        record_run(engine, run_id, state="failed", finished_at=datetime.now(UTC))
        for kind in KINDS:
            pool_store(settings, engine, domain, kind).unpin(run_id)
    if under_way:
        names = ", ".join(run.run_id for run in under_way)
        advice = "; ".join(_advice(domain, run) for run in under_way)
        folders = " ".join(str(settings.run_dir(run.run_id)) for run in under_way)
        which, them = (f"run {names} is", "it") if len(under_way) == 1 else (f"runs {names} are", "them")
        raise InputError(
            f"{which} in progress: let {them} end ({advice}), or delete {folders} to give {them} up, then forget again"
        )


def _advice(domain: str, run: leases.UnderWay) -> str:
    if run.owner is not None:
        host, process, _ = run.owner.split()
        return f"process {process} on {host} is at {run.run_id}"
    request = RunRequest.model_validate({**run.params, "run_id": run.run_id, "domain": domain})
    return f"`{request.command()}` goes on where it stopped, where Airflow does not"


def _section(domain: Domain, who: Entities) -> Any:
    return domain.source.items if who.kind == "item" else domain.source.users


def _digest(who: Entities) -> str:
    return hashlib.sha256("".join(sorted(who.tombstones.values())).encode()).hexdigest()[:16]


def _group_models(settings: Settings, engine: Engine, domain: Domain) -> GroupModelStore:
    """Those of users: they alone know entities by id, users as members and items as what members have met."""
    root = str(settings.pool_dir(domain.name, "user"))
    return GroupModelStore(root, WarehousePointer(engine, domain.name, "user", root))


def _grouped(who: Entities) -> dict[str, Sequence[str]]:
    return {"users": who.ids} if who.kind == "user" else {"items": who.ids}


def _out_of_reach(domain: Domain, who: Entities, has_copies: bool, embedded: bool, is_shared: bool) -> list[str]:
    section = _section(domain, who)
    source = (
        "a repeated `dare source import` brings the source's rows back, though no text; forget again after it"
        if has_copies
        else f"the source itself (tables {section.table!r} and {domain.source.interactions.table!r}), which is yours "
        "to delete from; pulls leave the entities out whether or not you do"
    )
    return [
        source,
        *([_OTHER_MACHINES] if is_shared else []),
        "what was exported out of the data folder: features, texts of pools, comparisons, models trained on them",
        "Airflow's own database, where messages of failed tasks may name ids: `airflow db clean`",
        "backups and copies of the data folder: the operator's to expire"
        if embedded
        else "what PostgreSQL's files still hold of the removed rows until they are written anew (VACUUM FULL of the "
        "schemas knowledge, partitions and source, and of pg_catalog.pg_statistic), its write-ahead log and archives, "
        "replicas and backups: the administrator's to rewrite and expire; docs/privacy.md says how",
    ]
