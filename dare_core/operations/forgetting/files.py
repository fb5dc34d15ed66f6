"""The files below ``data_dir``: which may hold some entities, and where in them."""

import re
from collections.abc import Iterator, Sequence
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
from dare_core.warehouse.runs import run_domains

#: Folder of what is being looked for, a file for each unfinished try.
JOURNAL: Final = "forgetting"
#: Folders of ``data_dir`` whose files hold nobody's text: the server's own, which is asked in SQL, and weights.
_NOT_FILES: Final = ("postgres", "models", JOURNAL)


class DataFiles:
    """The files below ``data_dir``, and what of them may be about some entities.

    Args:
        settings: in force.
        engine: the warehouse, which knows the domains of runs.
        domain: of the entities.
        who: the entities.

    Attributes:
        root: the folder, resolved.
        runs: their domains, as the warehouse and the folders' plans have them.
    """

    def __init__(self, settings: Settings, engine: Engine, domain: Domain, who: Entities) -> None:
        self._engine, self.who = engine, who
        self.root = settings.data_dir.expanduser().resolve()
        source = domain.source
        met = source.interactions
        self._id_columns = (source.items.id, met.item) if who.kind == "item" else (source.users.id, met.user)

    @cached_property
    def runs(self) -> dict[str, str]:
        """Domains of runs, the warehouse's and those whose folder has a plan."""
        found = run_domains(self._engine)
        for plan in (self.root / "runs").glob("*/plan.json"):
            found.setdefault(plan.parent.name, read_plan(plan.parent).domain)
        return found

    def walk(self) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Every file, with the parts of its path below ``data_dir``."""
        for path in sorted(self.root.rglob("*")):
            parts = path.relative_to(self.root).parts
            if parts[0] not in _NOT_FILES and path.is_file() and not path.is_symlink():
                yield path, parts

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
        """Every Parquet file of rows about entities, and which rows are about these."""
        for path, parts in self.walk():
            if path.suffix == ".parquet" and self.may_be_ours(parts):
                try:
                    if "entity_id" in pq.read_schema(path).names:
                        yield path, self.own_rows(path, parts)
                except (OSError, pa.ArrowException):
                    continue  # the search names it

    def own_rows(self, path: Path, parts: Sequence[str], requests: pa.Array | None = None) -> pa.Array:
        """``[rows]`` bool: which rows of a Parquet file are about the entities. Only columns of ids are read.

        Args:
            path: of the file.
            parts: of its path, as :meth:`walk` gives them.
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
