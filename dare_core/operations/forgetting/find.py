"""Finding: what is known of some entities before anything of them is removed."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from sqlalchemy import Engine

from dare_core.operations.forgetting.files import DataFiles
from dare_core.operations.forgetting.traces import (
    OWN,
    SHORTEST_TEXT,
    SHORTEST_TITLE,
    Entities,
    Traces,
    bare_pattern,
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
    return _exclusive(engine, who, _in_tables(engine, who)) | _exclusive(engine, who, _in_files(files))


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
    texts = [storable(one) for one in found.texts if len(one) >= SHORTEST_TEXT]
    titles = [one for one in found.titles if len(one) >= SHORTEST_TITLE]
    with transaction(engine) as cursor:
        shared = cursor.execute(
            f"""
            SELECT sought FROM unnest(%(texts)s::text[]) AS sought WHERE EXISTS (
                SELECT FROM knowledge.knowledge
                WHERE NOT ({OWN}) AND (position(sought IN text) > 0 OR position(sought IN prompt) > 0)
            ) OR EXISTS (
                SELECT FROM knowledge.quarantined_text
                WHERE NOT ({OWN}) AND (position(sought IN text) > 0 OR position(sought IN prompt) > 0)
            )
            """,  # noqa: S608 - names of ours
            {**who.bound, "texts": texts},
        ).fetchall()
        theirs = {row[0] for row in shared}
        mine = {one for one in found.texts if len(one) >= SHORTEST_TEXT and storable(one) not in theirs}
        alone = set[str]()
        for title in titles:
            elsewhere = cursor.execute(
                f"""
                SELECT EXISTS (SELECT FROM knowledge.entity WHERE NOT ({OWN}) AND attributes::text ~ %(title)s)
                    OR EXISTS (
                        SELECT FROM knowledge.knowledge
                        WHERE NOT ({OWN}) AND (text ~ %(title)s OR prompt ~ %(title)s)
                    ) OR EXISTS (
                        SELECT FROM knowledge.quarantined_text
                        WHERE NOT ({OWN}) AND (text ~ %(title)s OR prompt ~ %(title)s)
                    )
                """,  # noqa: S608 - names of ours
                {**who.bound, "title": bare_pattern([title])},
            ).fetchone()
            alone |= {title} if elsewhere == (False,) else set()
    return Traces(found.request_ids, frozenset(mine), frozenset(alone), found.token_ids)


def _in_files(files: DataFiles) -> Traces:
    """What staged files hold of the entities and of nobody else's rows."""
    requests, texts, tokens = set[str](), set[str](), set[tuple[int, ...]]()
    for table, own in files.tables():
        mine = table.filter(own)
        requests |= _values(mine, "request_id")
        texts |= _values(mine, "text") | _values(mine, "prompt")
        tokens |= {tuple(ids) for ids in _column(mine, "token_ids") if ids}
    for table, own in files.tables():
        others = table.filter(pc.invert(own))
        for name in ("text", "prompt"):
            texts -= _values(others, name) if texts else set()
    return Traces(frozenset(requests), frozenset(texts), frozenset(), frozenset(tokens))


def _values(table: pa.Table, name: str) -> set[str]:
    return {value for value in _column(table, name) if value is not None}


def _column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist() if name in table.column_names else []
    return values
