"""``dare forget``: an entity is removed from everything that the platform keeps, and then looked for everywhere.

The order makes a broken-off try safe to repeat: first what is known of the entity is written down, then rows go from
the warehouse in one transaction, then texts from pools and group models, then files. What was written down goes last,
once nothing was found.

<data_dir>/forgetting/<hash>.json    what is being looked for; there while a try is unfinished
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Engine

from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.grouping import GroupModelStore
from dare_core.knowledge.shards import read_plan, write_table
from dare_core.pools import PoolStore, retention
from dare_core.reports.facts import gather
from dare_core.reports.page import report_path, write_report
from dare_core.schemas import KINDS
from dare_core.storage.files import write_atomically
from dare_core.warehouse import forget as rows
from dare_core.warehouse.group_pointer import WarehousePointer
from dare_core.warehouse.stores import open_warehouse, pool_store
from dare_core.warehouse.traces import Entities, Sought, Traces

log = logging.getLogger(__name__)

_JOURNAL: Final = "forgetting"
#: Folders of ``data_dir`` whose files hold nobody's text: the server's own, which is asked in SQL, and weights.
_NOT_FILES: Final = ("postgres", "models", _JOURNAL)
_HOUR: Final = 3600.0


@dataclass(frozen=True)
class Forgotten:
    """What was done, what was searched, and what was found all the same.

    Attributes:
        rows: removed or changed, by table.
        pool_versions: removed, of the kind's retrieval pool.
        group_models: versions removed.
        files: changed, removed or written anew, below ``data_dir``.
        tables, columns, searched_rows: what of the warehouse was searched.
        searched_files, searched_bytes: what of ``data_dir``; the bytes as they are on disk.
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
        WarehouseError: the warehouse breaks off.
    """
    domain = load_domain(settings, who.domain)
    with open_warehouse(settings) as (_, engine):
        refuse_runs(settings, engine, domain.name)
        copies = rows.source_copies(engine, domain.source, who.kind)
        if strangers := rows.unknown(engine, who, copies):
            raise InputError(
                f"{domain.name} has no {who.kind} {', '.join(strangers)}; ids are those of the source table "
                f"{_section(domain, who).table!r}, column {_section(domain, who).id!r}"
            )
        on_step("gathering what is known")
        journal = settings.data_dir / _JOURNAL / f"{_digest(who)}.json"
        files = _Files(settings, engine, domain, who)
        traces = rows.traces(engine, who) | rows.exclusive(engine, who, files.traces())
        if journal.exists():
            traces |= Traces.of_json(journal.read_bytes())
        write_atomically(journal, traces.to_json().encode())

        on_step("removing rows")
        removed = rows.remove(engine, who, copies)
        on_step("rebuilding pools and group models without them")
        versions = retention.purge(
            pool_store(settings, engine, domain.name, who.kind), who.ids, sorted(traces.token_ids)
        )
        models = _group_models(settings, engine, domain).purge(**_grouped(who))
        on_step("cleaning files")
        changed = files.remove(traces)
        rows.vacuum(engine, copies)

        on_step("searching")
        of_tables = rows.search(engine, who, traces, copies)
        of_files = files.search(traces)
        of_models = [f"group model {name}" for name in _group_models(settings, engine, domain).holding(**_grouped(who))]
        found = [*of_tables.found, *of_models, *of_files.found]
    if not found:
        journal.unlink()
    return Forgotten(
        rows={table: count for table, count in removed.items() if count},
        pool_versions=versions,
        group_models=models,
        files=sorted(changed),
        tables=of_tables.tables,
        columns=of_tables.columns,
        searched_rows=of_tables.rows,
        searched_files=of_files.files,
        searched_bytes=of_files.size,
        searched_segments=of_files.segments,
        found=found,
        out_of_reach=_out_of_reach(domain, who, bool(copies)),
    )


def refuse_runs(settings: Settings, engine: Engine, domain: str) -> None:
    """A run that is under way holds entities in memory and would write them again.

    Raises:
        InputError: there is one; names it and says what to do.
    """
    of_domain = rows.run_domains(engine)
    under_way = [run_id for run_id in rows.unfinished_runs(engine, domain) if settings.run_dir(run_id).exists()]
    # Which domain a run is of that was not planned yet is in its rows, if anywhere: it may be this one.
    recent = time.time() - settings.deadline_hours * _HOUR
    for window in (settings.data_dir / "runs").glob("*/pull.json"):
        if window.parent.name not in of_domain and window.stat().st_mtime > recent:
            under_way.append(window.parent.name)
    if under_way:
        raise InputError(
            f"run {under_way[0]} is in progress: let it end (`dare pipeline run --run-id {under_way[0]}` goes on where "
            f"it stopped), or delete {settings.run_dir(under_way[0])} to give it up, then forget again"
        )


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


def _out_of_reach(domain: Domain, who: Entities, has_copies: bool) -> list[str]:
    section = _section(domain, who)
    source = (
        "a repeated `dare source import` brings the source's rows back, though no text; forget again after it"
        if has_copies
        else f"the source itself (tables {section.table!r} and {domain.source.interactions.table!r}), which is yours "
        "to delete from; pulls leave the entities out whether or not you do"
    )
    return [
        source,
        "what was exported out of the data folder: features, texts of pools, comparisons, models trained on them",
        "Airflow's own database, where messages of failed tasks may name ids: `airflow db clean`",
        "PostgreSQL's write-ahead log, backups and replicas, and copies of the data folder: the operator's to expire",
    ]


@dataclass(frozen=True)
class _SearchedFiles:
    files: int
    size: int
    segments: int
    found: list[str]


class _Files:
    """The files below ``data_dir``."""

    def __init__(self, settings: Settings, engine: Engine, domain: Domain, who: Entities) -> None:
        self._settings, self._engine, self._domain, self._who = settings, engine, domain, who
        self._root = settings.data_dir.expanduser().resolve()
        source = domain.source
        met = source.interactions
        self._id_columns = (source.items.id, met.item) if who.kind == "item" else (source.users.id, met.user)

    @cached_property
    def _runs(self) -> dict[str, str]:
        """Domains of runs, the warehouse's and those whose folder has a plan."""
        found = rows.run_domains(self._engine)
        for plan in (self._root / "runs").glob("*/plan.json"):
            found.setdefault(plan.parent.name, read_plan(plan.parent).domain)
        return found

    def _all(self) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Every file, with the parts of its path below ``data_dir``."""
        for path in sorted(self._root.rglob("*")):
            parts = path.relative_to(self._root).parts
            if parts[0] not in _NOT_FILES and path.is_file() and not path.is_symlink():
                yield path, parts

    def _domain_of(self, parts: Sequence[str]) -> str | None:
        """The domain that a file belongs to; None: nobody knows."""
        if parts[0] in ("pools", "evaluation") and len(parts) > 2:
            return parts[1]
        if parts[0] in ("runs", "data_docs"):
            return next((self._runs[part] for part in parts if part in self._runs), None)
        return None

    def _may_be_ours(self, parts: Sequence[str]) -> bool:
        return self._domain_of(parts) in (None, self._who.domain)

    # Knowing

    def traces(self) -> Traces:
        """What staged files hold of the entities and of nobody else's rows."""
        requests, texts, tokens = set[str](), set[str](), set[tuple[int, ...]]()
        for table, own in self._tables():
            mine = table.filter(own)
            requests |= _values(mine, "request_id")
            texts |= _values(mine, "text") | _values(mine, "prompt")
            tokens |= {tuple(ids) for ids in _column(mine, "token_ids") if ids}
        for table, own in self._tables():
            others = table.filter(pc.invert(own))
            for name in ("text", "prompt"):
                texts -= _values(others, name) if texts else set()
        return Traces(frozenset(requests), frozenset(texts), frozenset(), frozenset(tokens))

    def _tables(self) -> Iterator[tuple[pa.Table, pa.Array]]:
        """Every Parquet file of rows about entities, and which rows are about these."""
        for path, parts in self._all():
            if path.suffix == ".parquet" and self._may_be_ours(parts):
                try:
                    if "entity_id" in pq.read_schema(path).names:
                        table = pq.read_table(path, partitioning=None)
                        yield table, self._own_rows(table, parts)
                except (OSError, pa.ArrowException):
                    continue  # the search names it

    def _own_rows(self, table: pa.Table, parts: Sequence[str]) -> pa.Array:
        """``[rows]`` bool: which are about the entities by their id columns."""
        if "entity_id" not in table.column_names or not self._may_be_ours(parts):
            return pa.array([False] * len(table), pa.bool_())
        own = pc.is_in(table["entity_id"].cast(pa.string()), pa.array(self._who.ids, pa.string()))
        for name, wanted in (("kind", self._who.kind), ("domain", self._who.domain)):
            if name in table.column_names:
                own = pc.and_(own, pc.equal(table[name], wanted))
        if "kind" not in table.column_names and (others := set(KINDS) - {self._who.kind}) & set(parts):
            own = pc.and_(own, not others)
        return pc.fill_null(own.combine_chunks(), False)

    # Removing

    def remove(self, traces: Traces) -> set[str]:
        """Clean every file; pages that hold the entities go first, and reports of runs are written anew last.

        Returns:
            What was changed or removed.
        """
        sought = Sought(self._who, traces, self._id_columns)
        changed, reports = set[str](), set[str]()
        for path, parts in self._all():
            if path.suffix == ".parquet":
                done = self._clean_table(path, parts, traces)
            elif _is_scratch(path) and self._may_be_ours(parts) and parts[0] in ("runs", "evaluation", "pools"):
                path.unlink()  # a broken-off write; nobody writes while no run is in progress
                done = True
            else:
                done = self._clean_text(path, parts, sought)
            if done:
                changed.add("/".join(parts))
                if parts[0] == "runs":
                    reports.add(parts[1])
        self._remove_copies(traces)
        for run_id in sorted(reports):
            if (report := report_path(self._settings, run_id)).exists() or f"runs/{run_id}/{report.name}" in changed:
                domain = self._runs.get(run_id, self._who.domain)  # of a run that was never planned nobody knows more
                write_report(self._settings, gather(self._settings, self._engine, run_id, domain))
                changed.add(f"runs/{run_id}/{report.name}")
        return changed

    def _clean_table(self, path: Path, parts: Sequence[str], traces: Traces) -> bool:
        """Rewrite a Parquet file without the entities' rows; whether it had any."""
        try:
            table = pq.read_table(path, partitioning=None)
        except (OSError, pa.ArrowException):
            return False  # the search names it
        own = self._own_rows(table, parts)
        if "request_id" in table.column_names:
            asked = pc.is_in(table["request_id"].cast(pa.string()), pa.array(sorted(traces.request_ids), pa.string()))
            own = pc.or_(own, pc.fill_null(asked.combine_chunks(), False))
        if not pc.any(own).as_py():
            return False
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)  # Spark's checksum of the file as it was
        write_table(path, table.filter(pc.invert(own)))
        return True

    def _clean_text(self, path: Path, parts: Sequence[str], sought: Sought) -> bool:
        """Take out what a page, a log or a list says of the entities; whether it said anything."""
        ids, content = self._patterns(parts, sought), path.read_bytes()
        if not sought.found_in(content, ids):
            return False
        if path.suffix == ".html" or parts[0] == "data_docs":
            path.unlink()
        elif path.suffix == ".json":
            sentences = _list_of(content)
            if sentences is None:
                return False  # a document of somebody else's; the search names it
            kept = [one for one in sentences if not sought.found_in(json.dumps(one).encode(), ids)]
            write_atomically(path, json.dumps(kept).encode(), durable=False)
        else:
            lines = content.splitlines(keepends=True)
            kept_lines = [line for line in lines if not sought.found_in(line, ids)]
            if len(kept_lines) == len(lines):
                return False  # it spans lines; the search names it
            write_atomically(path, b"".join(kept_lines), durable=False)
        return True

    def _patterns(self, parts: Sequence[str], sought: Sought) -> "re.Pattern[bytes] | None":
        """How ids are written in a file: sentences of warnings and tables of Data Docs do not name what they are of."""
        if not self._may_be_ours(parts):
            return None
        if parts[0] == "data_docs":  # its list of runs and its stylesheets name no rows
            return None if len(parts) == 2 or parts[1] == "static" else sought.in_cells
        return sought.bare if parts[-1].startswith("warnings-") else sought.named

    def _remove_copies(self, traces: Traces) -> None:
        """Segments that lie in the cache of pools on object storage."""
        cache = PoolStore(self._settings.pool_cache_dir)
        for name in retention.holding(cache, self._who.ids, sorted(traces.token_ids)):
            cache.files.remove(name)

    # Searching

    def search(self, traces: Traces) -> _SearchedFiles:
        """Look for the entities in every file: decoded where it is Parquet or a pool's segment, else in its bytes."""
        sought = Sought(self._who, traces, self._id_columns)
        files = size = segments = 0
        found = list[str]()
        for path, parts in self._all():
            files, size = files + 1, size + path.stat().st_size
            if "segments" in parts[:-1]:
                segments += 1
                continue  # below, a pool at a time
            what = self._found_in_file(path, parts, sought)
            if what:
                found.append(f"{'/'.join(parts)}: {what}")
        for folder in sorted(path for path in self._root.rglob("segments") if path.is_dir()):
            parts = folder.relative_to(self._root).parts
            ours = parts[0] == "pool_cache" or parts[:-1] == ("pools", self._who.domain, self._who.kind)
            names = retention.holding(PoolStore(folder.parent), self._who.ids if ours else (), sorted(traces.token_ids))
            found += [f"{'/'.join(parts[:-1])}/{name}: text" for name in names]
        return _SearchedFiles(files, size, segments, found)

    def _found_in_file(self, path: Path, parts: Sequence[str], sought: Sought) -> str | None:
        if path.suffix != ".parquet":
            return sought.found_in(path.read_bytes(), self._patterns(parts, sought))
        try:
            table = pq.read_table(path, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            return f"cannot be read, so nobody can say: {error}" if self._may_be_ours(parts) else None
        if pc.any(self._own_rows(table, parts)).as_py():
            return "id"
        for field in table.schema:
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                values = (value for value in pc.unique(table[field.name]).to_pylist() if value is not None)
                ids = None if field.name == "entity_id" else self._patterns(parts, sought)
                if what := sought.found_in("\n".join(f"{field.name}: {value}" for value in values).encode(), ids):
                    return what
        return None


def _values(table: pa.Table, name: str) -> set[str]:
    return {value for value in _column(table, name) if value is not None}


def _column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist() if name in table.column_names else []
    return values


def _list_of(content: bytes) -> list[Any] | None:
    """What a JSON file lists; None: it is another document, or none."""
    with suppress(ValueError):
        if isinstance(read := json.loads(content), list):
            return read
    return None


def _is_scratch(path: Path) -> bool:
    """Whether a file is what a broken-off atomic write left."""
    return path.name.startswith(".writing-") or (path.name.startswith(".") and ".parquet-" in path.name)
