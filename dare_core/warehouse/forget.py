"""Forgetting entities: their rows removed from every table, and looked for in every column afterwards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from sqlalchemy import Engine, text

from dare_core.config.domains import Source
from dare_core.config.kinds import Kind
from dare_core.warehouse.connection import driver_cursor
from dare_core.warehouse.imported import is_imported
from dare_core.warehouse.load import lock, transaction
from dare_core.warehouse.tables import PARTITIONS, SCHEMA
from dare_core.warehouse.traces import (
    SHORTEST_TEXT,
    SHORTEST_TITLE,
    Entities,
    Traces,
    bare_pattern,
    id_pattern,
    written_forms,
)

#: Tables with columns ``domain``, ``kind`` and ``entity_id``. Vectors go with their texts, renderings with entities.
_OF_ENTITIES: Final = ("quarantine", "quarantined_text", "knowledge", "rendering", "entity")
_OWN: Final = "domain = %(domain)s AND kind = %(kind)s AND entity_id = ANY(%(ids)s::text[])"
_SEARCHED_SCHEMAS: Final = (SCHEMA, PARTITIONS, "staging", "features")


@dataclass(frozen=True)
class SourceCopy:
    """A source table that the platform imported, and its column that names entities of a kind."""

    schema: str
    table: str
    column: str


@dataclass(frozen=True)
class Searched:
    """What was looked through, and where something was found.

    Attributes:
        tables: how many tables.
        columns: of them, how many columns.
        rows: of them.
        found: ``schema.table.column`` and how many of its rows, in words.
    """

    tables: int
    columns: int
    rows: int
    found: list[str]


def source_copies(engine: Engine, source: Source, kind: Kind) -> list[SourceCopy]:
    """Where the platform keeps source rows of a kind of entity: its imports; a team's own tables are not among them."""
    if source.format != "postgres" or source.location is not None:
        return []
    entities, met = (
        (source.items, source.interactions.item) if kind == "item" else (source.users, source.interactions.user)
    )
    named = [(source.interactions.table, met), (entities.table, entities.id)]
    with engine.connect() as connection, driver_cursor(connection) as cursor:
        return [
            SourceCopy(source.db_schema, table, column)
            for table, column in named
            if is_imported(cursor, source.db_schema, table)
        ]


def forgotten(engine: Engine, domain: str, kind: Kind) -> list[str]:
    """The tombstones of a domain's kind; see :func:`dare_core.warehouse.traces.tombstone`."""
    query = text("SELECT entity FROM knowledge.forgotten WHERE domain = :domain AND kind = :kind ORDER BY entity")
    with engine.connect() as connection:
        return list(connection.execute(query, {"domain": domain, "kind": kind}).scalars())


def unknown(engine: Engine, who: Entities, copies: Sequence[SourceCopy]) -> list[str]:
    """Ids that neither the warehouse nor its source copies know, nor ever forgot."""
    known = [f"SELECT entity_id FROM knowledge.{table} WHERE {_OWN}" for table in _OF_ENTITIES]  # noqa: S608
    with transaction(engine) as cursor:
        found = {row[0] for row in cursor.execute(" UNION ".join(known), _bound(who))}
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


def traces(engine: Engine, who: Entities) -> Traces:
    """What the warehouse holds of the entities and of nobody else."""
    requests, texts, tokens = set[str](), set[str](), set[tuple[int, ...]]()
    with transaction(engine) as cursor:
        for table in ("knowledge", "quarantined_text"):
            written = f"SELECT request_id, text, prompt, token_ids FROM knowledge.{table} WHERE {_OWN}"  # noqa: S608
            for request_id, answer, prompt, token_ids in cursor.execute(written, _bound(who)):
                requests.add(request_id)
                texts |= {answer, prompt}
                tokens.add(tuple(token_ids))
        for request_id, answer in cursor.execute(
            f"SELECT request_id, text FROM knowledge.quarantine WHERE {_OWN} "  # noqa: S608
            f"UNION SELECT request_id, '' FROM knowledge.rendering WHERE {_OWN}",
            _bound(who),
        ):
            requests.add(request_id)
            texts.add(answer)
        titles = cursor.execute(
            f"SELECT attributes ->> 'title' FROM knowledge.entity WHERE {_OWN} AND attributes ? 'title'",  # noqa: S608
            _bound(who),
        )
        found = Traces(frozenset(requests), frozenset(texts), frozenset(row[0] for row in titles), frozenset(tokens))
    return exclusive(engine, who, found)


def exclusive(engine: Engine, who: Entities, found: Traces) -> Traces:
    """The traces without texts and titles that other entities' rows hold too, and without very short ones."""
    texts = [_storable(one) for one in found.texts if len(one) >= SHORTEST_TEXT]
    titles = [one for one in found.titles if len(one) >= SHORTEST_TITLE]
    with transaction(engine) as cursor:
        shared = cursor.execute(
            f"""
            SELECT sought FROM unnest(%(texts)s::text[]) AS sought WHERE EXISTS (
                SELECT FROM knowledge.knowledge
                WHERE NOT ({_OWN}) AND (position(sought IN text) > 0 OR position(sought IN prompt) > 0)
            ) OR EXISTS (
                SELECT FROM knowledge.quarantined_text
                WHERE NOT ({_OWN}) AND (position(sought IN text) > 0 OR position(sought IN prompt) > 0)
            )
            """,  # noqa: S608 - names of ours
            {**_bound(who), "texts": texts},
        ).fetchall()
        theirs = {row[0] for row in shared}
        mine = {one for one in found.texts if len(one) >= SHORTEST_TEXT and _storable(one) not in theirs}
        alone = set[str]()
        for title in titles:
            elsewhere = cursor.execute(
                f"""
                SELECT EXISTS (SELECT FROM knowledge.entity WHERE NOT ({_OWN}) AND attributes::text ~ %(title)s)
                    OR EXISTS (
                        SELECT FROM knowledge.knowledge
                        WHERE NOT ({_OWN}) AND (text ~ %(title)s OR prompt ~ %(title)s)
                    ) OR EXISTS (
                        SELECT FROM knowledge.quarantined_text
                        WHERE NOT ({_OWN}) AND (text ~ %(title)s OR prompt ~ %(title)s)
                    )
                """,  # noqa: S608 - names of ours
                {**_bound(who), "title": bare_pattern([title])},
            ).fetchone()
            alone |= {title} if elsewhere == (False,) else set()
    return Traces(found.request_ids, frozenset(mine), frozenset(alone), found.token_ids)


def run_domains(engine: Engine) -> dict[str, str]:
    """The domain of every run that was planned."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT run_id, domain FROM knowledge.generation_run"))
        return {row.run_id: row.domain for row in rows}


def unfinished_runs(engine: Engine, domain: str) -> list[str]:
    """Runs of a domain that were planned and neither loaded nor failed, the latest first."""
    query = text(
        "SELECT run_id FROM knowledge.generation_run WHERE domain = :domain AND state = 'planned' "
        "ORDER BY started_at DESC"
    )
    with engine.connect() as connection:
        return list(connection.execute(query, {"domain": domain}).scalars())


def remove(engine: Engine, who: Entities, copies: Sequence[SourceCopy]) -> dict[str, int]:
    """Remove the entities' rows and leave tombstones, all in one transaction; again, it removes what is left.

    What users' histories show of a forgotten item goes too.

    Args:
        engine: the warehouse, as the owner of its tables.
        who: the entities.
        copies: of :func:`source_copies`.

    Returns:
        Rows removed, or changed, by table.

    Raises:
        WarehouseError: the warehouse broke off; nothing was removed.
    """
    counts: dict[str, int] = {}
    with transaction(engine) as cursor:
        for what in ("entity", "rendering", "knowledge"):
            lock(cursor, what)
        cursor.execute(
            """
            INSERT INTO knowledge.forgotten (domain, kind, entity, forgotten_at)
            SELECT %s, %s, unnest(%s::text[]), now() ON CONFLICT DO NOTHING
            """,
            [who.domain, who.kind, list(who.tombstones.values())],
        )
        if who.kind == "item":
            counts["knowledge.entity (histories)"] = _remove_from_histories(cursor, who)
        for table in _OF_ENTITIES:
            cursor.execute(f"DELETE FROM knowledge.{table} WHERE {_OWN}", _bound(who))  # noqa: S608
            counts[f"knowledge.{table}"] = cursor.rowcount
        for copy in copies:
            target = sql.Identifier(copy.schema, copy.table)
            cursor.execute(
                sql.SQL("DELETE FROM {} WHERE {}::text = ANY(%s)").format(target, sql.Identifier(copy.column)),
                [list(who.ids)],
            )
            counts[f"{copy.schema}.{copy.table}"] = cursor.rowcount
    return counts


def _remove_from_histories(cursor: psycopg.Cursor[Any], who: Entities) -> int:
    """A history's entry is the item's attributes, a value and a time."""
    cursor.execute(
        f"""
        WITH described AS MATERIALIZED (SELECT attributes AS item FROM knowledge.entity WHERE {_OWN}), kept AS (
            SELECT entity_id, (
                SELECT coalesce(jsonb_agg(entry ORDER BY place), '[]')
                FROM jsonb_array_elements(attributes -> 'history') WITH ORDINALITY AS met (entry, place)
                WHERE NOT EXISTS (SELECT FROM described WHERE item = entry - 'value' - 'time')
            ) AS history
            FROM knowledge.entity
            WHERE domain = %(domain)s AND kind = 'user' AND jsonb_typeof(attributes -> 'history') = 'array'
        )
        UPDATE knowledge.entity AS e
        SET attributes = jsonb_set(attributes, '{{history}}', kept.history), updated_at = now()
        FROM kept
        WHERE e.domain = %(domain)s AND e.kind = 'user' AND e.entity_id = kept.entity_id
            AND jsonb_array_length(attributes -> 'history') <> jsonb_array_length(kept.history)
        """,  # noqa: S608
        _bound(who),
    )
    return cursor.rowcount


def vacuum(engine: Engine, copies: Sequence[SourceCopy]) -> None:
    """Take removed rows out of the tables' files too: until then PostgreSQL merely hides them."""
    tables = [f"{SCHEMA}.{table}" for table in (*_OF_ENTITIES, "knowledge_embedding")]
    names = [sql.Identifier(*table.split(".")) for table in tables]
    names += [sql.Identifier(copy.schema, copy.table) for copy in copies]
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        driver_cursor(connection) as cursor,
    ):
        cursor.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.SQL(", ").join(names)))


def search(engine: Engine, who: Entities, sought: Traces, copies: Sequence[SourceCopy]) -> Searched:
    """Look for the entities in every column of every table of the warehouse, and of the source's copies.

    Ids are looked for in the columns that hold ids, and in text and JSON where they are named as such; requests, texts
    and titles everywhere.
    """
    columns = _columns(engine, copies)
    id_columns = {(copy.schema, copy.table): copy.column for copy in copies}
    whole = (*map(_storable, sought.texts), *sought.request_ids)
    bound = {
        **_bound(who),
        "requests": list(sought.request_ids),
        "texts": [f"%{_like(form)}%" for one in whole for form in written_forms(one)],
        "titles": bare_pattern(sought.titles) if sought.titles else None,
        "named": id_pattern(who),
    }
    rows_seen, columns_seen, found = 0, 0, list[str]()
    with transaction(engine) as cursor:
        for (schema, table), of_table in columns.items():
            conditions = _conditions(of_table, id_columns.get((schema, table)))
            counted = [sql.SQL("count(*) FILTER (WHERE {})").format(one) for one in conditions.values()]
            cursor.execute(
                sql.SQL("SELECT count(*), {} FROM {}").format(
                    sql.SQL(", ").join(counted) if counted else sql.SQL("0"), sql.Identifier(schema, table)
                ),
                bound,
            )
            rows, *hits = cursor.fetchone() or (0,)
            rows_seen, columns_seen = rows_seen + rows, columns_seen + len(conditions)
            for column, hit in zip(conditions, hits, strict=False):
                if hit:
                    found.append(f"{schema}.{table}.{column}: {hit} row" + ("s" if hit > 1 else ""))
    return Searched(len(columns), columns_seen, rows_seen, found)


def _columns(engine: Engine, copies: Iterable[SourceCopy]) -> dict[tuple[str, str], dict[str, str]]:
    """Types of the columns of every table that is searched, by schema and table."""
    query = text("""
        SELECT n.nspname AS schema, c.relname AS name, a.attname AS column, format_type(a.atttypid, NULL) AS type
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relkind IN ('r', 'm')
            AND (n.nspname = ANY(:schemas) OR (n.nspname || '.' || c.relname) = ANY(:copies))
        ORDER BY 1, 2, a.attnum
    """)
    bound = {"schemas": list(_SEARCHED_SCHEMAS), "copies": [f"{copy.schema}.{copy.table}" for copy in copies]}
    found: dict[tuple[str, str], dict[str, str]] = {}
    with engine.connect() as connection:
        for row in connection.execute(query, bound):
            found.setdefault((row.schema, row.name), {})[row.column] = row.type
    return found


_TEXTS: Final = ("text", "character varying", "character", "json", "jsonb", "text[]", "character varying[]")


def _conditions(columns: dict[str, str], id_column: str | None) -> dict[str, sql.Composable]:
    """What is looked for in each column."""
    conditions: dict[str, sql.Composable] = {}
    of_domain = "domain = %(domain)s" if "domain" in columns else "true"
    for column, kind in columns.items():
        name, tests = sql.Identifier(column), list[sql.Composable]()
        if column == "entity_id" and "kind" in columns:
            tests.append(sql.SQL(f"({of_domain} AND kind = %(kind)s AND entity_id = ANY(%(ids)s::text[]))"))
        elif column == id_column:
            tests.append(sql.SQL("{}::text = ANY(%(ids)s::text[])").format(name))
        elif column == "request_id":
            tests.append(sql.SQL("request_id = ANY(%(requests)s::text[])"))
        elif kind in _TEXTS:
            tests.append(sql.SQL("{}::text LIKE ANY(%(texts)s::text[])").format(name))
            tests.append(sql.SQL("{}::text ~ %(titles)s::text").format(name))
            if id_column is None:
                tests.append(sql.SQL(f"({of_domain} AND {{}}::text ~ %(named)s)").format(name))
        if tests:
            conditions[column] = sql.SQL(" OR ").join(tests)
    return conditions


def _storable(text: str) -> str:
    """A text as the warehouse holds it: without NUL characters, as quarantine writes them."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _like(text: str) -> str:
    """A text as LIKE takes it literally."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _bound(who: Entities) -> dict[str, Any]:
    return {"domain": who.domain, "kind": who.kind, "ids": list(who.ids)}
