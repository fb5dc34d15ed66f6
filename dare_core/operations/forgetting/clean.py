"""Cleaning: rows leave the warehouse, and files what they say of the entities."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg import sql
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.operations.forgetting.files import DataFile, DataFiles
from dare_core.operations.forgetting.traces import OWN, Entities, Sought, Traces
from dare_core.pools import PoolStore, retention
from dare_core.reports.facts import gather
from dare_core.reports.page import report_path, write_report
from dare_core.storage.atomic import write_atomically
from dare_core.storage.locations import exists, remove
from dare_core.storage.run_files import write_table
from dare_core.warehouse.connection import driver_cursor, lock, lock_knowledge, transaction
from dare_core.warehouse.entities import leave_tombstones, remove_from_histories
from dare_core.warehouse.imported import SourceCopy
from dare_core.warehouse.tables import OF_ENTITIES, SCHEMA


def remove_rows(engine: Engine, who: Entities, copies: Sequence[SourceCopy]) -> dict[str, int]:
    """Remove the entities' rows and leave tombstones, all in one transaction; again, it removes what is left.

    What users' histories show of a forgotten item goes too.

    Args:
        engine: the warehouse, as the owner of its tables.
        who: the entities.
        copies: of :func:`dare_core.warehouse.imported.source_copies`.

    Returns:
        Rows removed, or changed, by table.

    Raises:
        WarehouseError: the warehouse broke off; nothing was removed.
    """
    counts: dict[str, int] = {}
    with transaction(engine) as cursor:
        for what in ("entity", "rendering"):
            lock(cursor, what)
        lock_knowledge(cursor, [who.domain])
        leave_tombstones(cursor, who.domain, who.kind, who.ids)
        if who.kind == "item":
            counts["knowledge.entity (histories)"] = remove_from_histories(cursor, who.domain, who.ids)
        for table in OF_ENTITIES:
            cursor.execute(f"DELETE FROM knowledge.{table} WHERE {OWN}", who.bound)  # noqa: S608
            counts[f"knowledge.{table}"] = cursor.rowcount
        for copy in copies:
            target = sql.Identifier(copy.schema, copy.table)
            cursor.execute(
                sql.SQL("DELETE FROM {} WHERE {}::text = ANY(%s)").format(target, sql.Identifier(copy.column)),
                [list(who.ids)],
            )
            counts[f"{copy.schema}.{copy.table}"] = cursor.rowcount
    return counts


def vacuum(engine: Engine, copies: Sequence[SourceCopy], embedded: bool = False) -> None:
    """Let the space of removed rows be used again; their bytes stay until it is.

    On the embedded server the bytes go too: the tables and their indexes are written anew, with what the planner noted
    of their values and what staging holds, and the log that led there is removed. Nobody else may hold a transaction.
    """
    names = [sql.Identifier(SCHEMA, table) for table in (*OF_ENTITIES, "knowledge_embedding")]
    names += [sql.Identifier(copy.schema, copy.table) for copy in copies]
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        driver_cursor(connection) as cursor,
    ):
        if not embedded:
            cursor.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.SQL(", ").join(names)))
            return
        cursor.execute("SELECT schemaname, tablename FROM pg_tables WHERE schemaname = 'staging'")
        names += [sql.Identifier(*row) for row in cursor.fetchall()]
        names.append(sql.Identifier(SCHEMA, "generation_run"))
        cursor.execute(sql.SQL("VACUUM (FULL, ANALYZE) {}").format(sql.SQL(", ").join(names)))
        cursor.execute("VACUUM FULL pg_catalog.pg_statistic")
        cursor.execute("SELECT pg_switch_wal()")
        cursor.execute("CHECKPOINT")  # after it, files of old tables and segments of the log are no longer needed


def clean_files(settings: Settings, engine: Engine, files: DataFiles, traces: Traces) -> set[str]:
    """Clean every file; pages that hold the entities go first, and reports of runs are written anew last.

    Args:
        settings: in force.
        engine: the warehouse, without the entities' rows.
        files: all there are.
        traces: of the entities.

    Returns:
        What was changed or removed.
    """
    sought = files.sought(traces)
    requests = pa.array(sorted(traces.request_ids), pa.string())
    changed, reports = set[str](), set[str]()
    for file, path in files.walk(lambda file: file.is_scratch or not file.is_segment):  # segments are purged already
        if file.is_table:
            done = _clean_table(files, file, path, requests)
        elif file.is_scratch and files.may_be_ours(file.parts):
            remove(file.path)  # nobody writes while no run is in progress
            done = True
        else:
            done = _clean_text(files, file, path.read_bytes(), sought)
        if done:
            changed.add(file.name)
            if file.parts[0] == "runs":
                reports.add(file.parts[1])
    cache = PoolStore(settings.pool_cache_dir)  # of segments on object storage
    for name in retention.holding(cache, files.who.ids, sorted(traces.token_ids)):
        cache.files.remove(name)
    for run_id in sorted(reports):
        report = report_path(settings, run_id)
        name = files.name(files.places[-1] / "runs" / run_id / report.name)
        if name in changed or exists(report):
            domain = files.runs.get(run_id, files.who.domain)  # of a run that was never planned nobody knows more
            write_report(settings, gather(settings, engine, run_id, domain))
            changed.add(name)
    return changed


def _clean_table(files: DataFiles, file: DataFile, path: Path, requests: pa.Array) -> bool:
    """Rewrite a Parquet file, of which ``path`` may be a copy, without the entities' rows; whether it had any."""
    try:
        own = files.own_rows(path, file.parts, requests)
        if not pc.any(own).as_py():
            return False
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException):
        return False  # the search names it
    remove(file.path.parent / f".{file.path.name}.crc")  # Spark's checksum of the file as it was
    write_table(file.path, table.filter(pc.invert(own)))
    return True


def _clean_text(files: DataFiles, file: DataFile, content: bytes, sought: Sought) -> bool:
    """Take out what a page, a log or a list says of the entities; whether it said anything."""
    path, ids = file.path, files.id_pattern(file.parts, sought)
    if not sought.found_in(content, ids):
        return False
    if path.suffix == ".html" or file.parts[0] in ("data_docs", "alerts"):
        remove(path)
    elif path.suffix == ".json":
        sentences = _list_of(content)
        if sentences is None:
            return False  # a document of somebody else's; the search names it
        kept = [one for one in sentences if not sought.found_in(json.dumps(one).encode(), ids)]
        write_atomically(path, json.dumps(kept).encode(), durable=False)
    else:
        lines = content.splitlines(keepends=True)
        ends = np.cumsum([len(line) for line in lines])
        touched = {int(np.searchsorted(ends, at, "right")) for at, _ in sought.places(content, ids)}
        gone = {number for number in touched if sought.found_in(lines[number], ids)}
        if not gone:
            return False  # it spans lines; the search names it
        write_atomically(path, b"".join(line for n, line in enumerate(lines) if n not in gone), durable=False)
    return True


def _list_of(content: bytes) -> list[Any] | None:
    """What a JSON file lists; None: it is another document, or none."""
    with suppress(ValueError):
        if isinstance(read := json.loads(content), list):
            return read
    return None
