"""The files of this machine and of the shared storage: which may hold some entities, and where in them."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Engine

from dare_core.config.domains import Domain
from dare_core.config.settings import Settings
from dare_core.knowledge.shards import read_plan
from dare_core.operations.forgetting.traces import Entities, Sought, Traces
from dare_core.schemas import KINDS
from dare_core.storage.atomic import is_scratch
from dare_core.storage.locations import Location, Stored, exists, fetched, files_below, files_in, is_folder, matching
from dare_core.warehouse.runs import run_domains

#: Folder of what is being looked for, a file for each unfinished try.
JOURNAL: Final = "forgetting"
#: Folders whose files hold nobody's text: the server's own, which is asked in SQL, and weights.
_NOT_FILES: Final = ("postgres", "models", JOURNAL)


@dataclass(frozen=True)
class DataFile:
    """A file below ``data_dir`` or the shared storage.

    Attributes:
        path: where it lies.
        parts: of its path below the one or the other.
        name: as it is shown: its path below ``data_dir``, or all of it.
        size: in bytes.
    """

    path: Location
    parts: tuple[str, ...]
    name: str
    size: int

    @property
    def is_table(self) -> bool:
        """Whether it is Parquet."""
        return self.parts[-1].endswith(".parquet")

    @property
    def is_segment(self) -> bool:
        """Whether it is a retrieval pool's segment."""
        return "segments" in self.parts[:-1]

    @property
    def is_scratch(self) -> bool:
        """Whether it is what a broken-off write left."""
        return is_scratch(self.parts[-1]) and self.parts[0] in ("runs", "evaluation", "pools")


class DataFiles:
    """The files below ``data_dir`` and on the shared storage, and what of them may be about some entities.

    Args:
        settings: in force.
        engine: the warehouse, which knows the domains of runs.
        domain: of the entities.
        who: the entities.

    Attributes:
        places: ``data_dir``, and the shared storage where that is elsewhere.
        runs: their domains, as the warehouse and the folders' plans have them.
    """

    def __init__(self, settings: Settings, engine: Engine, domain: Domain, who: Entities) -> None:
        self._engine, self.who = engine, who
        own, shared = settings.data_dir.expanduser().resolve(), settings.shared
        shared = shared.expanduser().resolve() if isinstance(shared, Path) else shared
        self.places: list[Location] = [own] if shared == own else [own, shared]
        source = domain.source
        met = source.interactions
        self._id_columns = (source.items.id, met.item) if who.kind == "item" else (source.users.id, met.user)

    @cached_property
    def runs(self) -> dict[str, str]:
        """Domains of runs, the warehouse's and those whose folder has a plan."""
        found = run_domains(self._engine)
        for run in (run for place in self.places for run in matching(place / "runs")):
            if run.name not in found and exists(run / "plan.json"):
                found[run.name] = read_plan(run).domain
        return found

    def walk(self, wanted: Callable[[DataFile], bool] = lambda file: True) -> Iterator[tuple[DataFile, Path]]:
        """Every file that is wanted, and until the next it or its copy as a local one; each is fetched once."""
        for file in filter(wanted, self._files()):
            with suppress(FileNotFoundError), fetched(file.path) as path:  # `maintain` may remove some meanwhile
                yield file, path

    def _files(self) -> Iterator[DataFile]:
        """Every file of the places. A remote folder is listed once, whatever lies below it."""
        for place in self.places:
            for stored in self._stored(place, place):
                yield DataFile(stored.path, _below(stored.path, place), self.name(stored.path), stored.size)

    def name(self, path: Location) -> str:
        """What a file is called: its path below ``data_dir``, or all of it."""
        own = self.places[0]
        is_own = isinstance(path, Path) and isinstance(own, Path) and path.is_relative_to(own)
        return "/".join(_below(path, own)) if is_own else str(path)

    def _stored(self, place: Location, folder: Location) -> Iterator[Stored]:
        """The files below a folder of a place, without those that hold nobody's text, and those of the other place."""
        if folder != place and not any(folder in other.parents for other in self.places):
            yield from files_below(folder)
            return
        yield from (file for file in files_in(folder) if not _is_link(file.path))
        for below in matching(folder):
            elsewhere = below in self.places or (folder == place and below.name in _NOT_FILES) or _is_link(below)
            if not elsewhere and is_folder(below):
                yield from self._stored(place, below)

    def _domain_of(self, parts: Sequence[str]) -> str | None:
        """The domain that a file belongs to; None: nobody knows."""
        if parts[0] in ("pools", "evaluation") and len(parts) > 2:
            return parts[1]
        if parts[0] in ("runs", "data_docs"):
            return next((self.runs[part] for part in parts if part in self.runs), None)
        return None

    def may_be_ours(self, parts: Sequence[str]) -> bool:
        """Whether a file is of the entities' domain, or of nobody knows which."""
        return self._domain_of(parts) in (None, self.who.domain)

    def tables(self) -> Iterator[tuple[Path, pa.Array]]:
        """Every Parquet file of rows about entities, as a local one until the next, and which rows are about these."""
        for file, path in self.walk(lambda file: file.is_table and self.may_be_ours(file.parts)):
            try:
                if "entity_id" in pq.read_schema(path).names:
                    yield path, self.own_rows(path, file.parts)
            except (OSError, pa.ArrowException):
                continue  # the search names it

    def own_rows(self, path: Path, parts: Sequence[str], requests: pa.Array | None = None) -> pa.Array:
        """``[rows]`` bool: which rows of a Parquet file are about the entities. Only columns of ids are read.

        Args:
            path: of the file, or of its copy.
            parts: see :class:`DataFile`.
            requests: ids of requests that count wherever they stand; None: the columns of entities alone do.
        """
        with pq.ParquetFile(path) as file:
            named = set(file.schema_arrow.names)
            wanted = [name for name in ("entity_id", "kind", "domain", "request_id") if name in named]
            table = file.read(wanted, use_threads=False)
        own = pa.chunked_array([pa.array(np.zeros(len(table), np.bool_))])
        if "entity_id" in named and self.may_be_ours(parts):
            own = pc.is_in(table["entity_id"].cast(pa.string()), self._ids)
            for name, mine in (("kind", self.who.kind), ("domain", self.who.domain)):
                if name in named:
                    own = pc.and_(own, pc.equal(table[name], mine))
            if "kind" not in named and (others := set(KINDS) - {self.who.kind}) & set(parts):
                own = pc.and_(own, not others)
        if requests is not None and "request_id" in named:
            own = pc.or_kleene(own, pc.is_in(table["request_id"].cast(pa.string()), requests))
        return pc.fill_null(own, False).combine_chunks()

    @cached_property
    def _ids(self) -> pa.Array:
        return pa.array(self.who.ids, pa.string())

    def sought(self, traces: Traces) -> Sought:
        """The entities and their traces, as they are looked for in bytes."""
        return Sought(self.who, traces, self._id_columns)

    def id_pattern(self, parts: Sequence[str], sought: Sought) -> "re.Pattern[bytes] | None":
        """How ids are written in a file: sentences of warnings and tables of Data Docs do not name what they are of."""
        if not self.may_be_ours(parts):
            return None
        if parts[0] == "data_docs":  # its list of runs and its stylesheets name no rows
            return None if len(parts) == 2 or parts[1] == "static" else sought.in_cells
        return sought.bare if parts[-1].startswith("warnings-") else sought.named


def _below(path: Location, place: Location) -> tuple[str, ...]:
    return (*path.parts[len(place.parts) :],)


def _is_link(path: Location) -> bool:
    return isinstance(path, Path) and path.is_symlink()
