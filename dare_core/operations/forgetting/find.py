"""Finding: what is known of some entities before anything of them is removed."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg import sql
from sqlalchemy import Engine

from dare_core.operations.forgetting.columns import columns_of
from dare_core.operations.forgetting.files import DataFiles
from dare_core.operations.forgetting.traces import (
    OWN,
    SHORTEST_TEXT,
    SHORTEST_TITLE,
    Entities,
    Shared,
    Traces,
    storable,
)
from dare_core.warehouse.connection import transaction
from dare_core.warehouse.imported import SourceCopy
from dare_core.warehouse.tables import OF_ENTITIES


def unknown(engine: Engine, who: Entities, copies: Sequence[SourceCopy]) -> list[str]:
    """Ids that neither the warehouse nor its source copies know, nor ever forgot."""
    known = [f"SELECT entity_id FROM knowledge.{table} WHERE {OWN}" for table in OF_ENTITIES]  # noqa: S608
    with transaction(engine) as cursor:
        found = {row[0] for row in cursor.execute(" UNION ".join(known), who.bound)}
        for copy in copies:
            rows = cursor.execute(
                sql.SQL("SELECT DISTINCT {0}::text FROM {1} WHERE {0}::text = ANY(%s)").format(
                    sql.Identifier(copy.column), sql.Identifier(copy.schema, copy.table)
                ),
                [list(who.ids)],
            )
            found |= {row[0] for row in rows}
        gone = cursor.execute(
            "SELECT entity FROM knowledge.forgotten WHERE entity = ANY(%s)", [list(who.tombstones.values())]
        )
        tombstones = {row[0] for row in gone}
    return [name for name, mark in who.tombstones.items() if name not in found and mark not in tombstones]


def traces(engine: Engine, who: Entities, files: DataFiles) -> Traces:
    """What warehouse and files hold of the entities and of nobody else."""
    of_tables = _in_tables(engine, who)
    of_files = _in_files(files, of_tables.texts)
    return _exclusive(engine, who, of_tables | of_files)


def _in_tables(engine: Engine, who: Entities) -> Traces:
    """What the warehouse holds of the entities."""
    requests, texts, tokens = set[str](), set[str](), set[tuple[int, ...]]()
    with transaction(engine) as cursor:
        for table in ("knowledge", "quarantined_text"):
            written = f"SELECT request_id, text, prompt, token_ids FROM knowledge.{table} WHERE {OWN}"  # noqa: S608
            for request_id, answer, prompt, token_ids in cursor.execute(written, who.bound):
                requests.add(request_id)
                texts |= {answer, prompt}
                tokens.add(tuple(token_ids))
        for request_id, answer in cursor.execute(
            f"SELECT request_id, text FROM knowledge.quarantine WHERE {OWN} "  # noqa: S608
            f"UNION SELECT request_id, '' FROM knowledge.rendering WHERE {OWN}",
            who.bound,
        ):
            requests.add(request_id)
            texts.add(answer)
        titles = cursor.execute(
            f"SELECT attributes ->> 'title' FROM knowledge.entity WHERE {OWN} AND attributes ? 'title'",  # noqa: S608
            who.bound,
        )
        return Traces(frozenset(requests), frozenset(texts), frozenset(row[0] for row in titles), frozenset(tokens))


def _exclusive(engine: Engine, who: Entities, found: Traces) -> Traces:
    """The traces without texts and titles that other entities' rows hold too, and without very short ones."""
    texts = {storable(one): one for one in found.texts if len(one) >= SHORTEST_TEXT}
    titles = {one for one in found.titles if len(one) >= SHORTEST_TITLE}
    theirs = set[str]()
    sought = Shared(texts, titles)
    others = f"WHERE NOT ({OWN})"
    with transaction(engine) as cursor:
        for table in ("knowledge", "quarantined_text"):
            for column in columns_of(cursor, f"knowledge.{table}", ("text", "prompt"), others, who.bound):
                theirs |= sought.found_in(column.content, theirs)
        if titles:
            for column in columns_of(cursor, "knowledge.entity", ("attributes",), others, who.bound):
                theirs |= sought.found_in(column.content, theirs)
    return Traces(
        found.request_ids,
        frozenset(one for stored, one in texts.items() if stored not in theirs),
        frozenset(titles - theirs),
        found.token_ids,
    )


def _in_files(files: DataFiles, known: frozenset[str]) -> Traces:
    """What staged files hold of the entities and of nobody else's rows; ``known`` texts are looked into elsewhere."""
    requests, texts, tokens = set[str](), set[str](), set[tuple[int, ...]]()
    for path, own in files.tables():
        if pc.any(own).as_py():
            mine = pq.read_table(path, partitioning=None).filter(own)
            requests |= _values(mine, "request_id")
            texts |= _values(mine, "text") | _values(mine, "prompt")
            tokens |= {tuple(ids) for ids in _column(mine, "token_ids") if ids}
    if staged := texts - known:
        values = pa.array(sorted(staged), pa.string())
        for path, own in files.tables():
            names = [name for name in ("text", "prompt") if name in pq.read_schema(path).names]
            others = pq.read_table(path, columns=names, partitioning=None).filter(pc.invert(own))
            for name in names:
                column = others[name].cast(pa.string())
                texts -= set(column.filter(pc.is_in(column, values)).to_pylist()) - known
    return Traces(frozenset(requests), frozenset(texts), frozenset(), frozenset(tokens))


def _values(table: pa.Table, name: str) -> set[str]:
    return {value for value in _column(table, name) if value is not None}


def _column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist() if name in table.column_names else []
    return values
