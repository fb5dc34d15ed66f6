"""Interactions that lie in the warehouse's own database (table ``interaction_source``): where they are, and their rows.

SQL functions know nothing of domains' files; what they need of one is registered here.
"""

from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pyarrow as pa
from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql import insert

from dare_core.config.domains import TIME_UNITS, Domain, domain_names, load_domain
from dare_core.config.settings import Settings
from dare_core.errors import SettingError, SourceError
from dare_core.schemas import TIME
from dare_core.warehouse.connection import reason
from dare_core.warehouse.tables import INTERACTION_SOURCE

_ROWS_PER_BATCH: Final = 65_536

#: An interaction as :func:`stream_interactions` gives it.
INTERACTION: Final = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("event_timestamp", TIME, nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
    ]
)


def register(engine: Engine, domain: Domain) -> bool:
    """Tell the warehouse where a domain's interactions are, and which are likes; or that it can know of none.

    Returns:
        Whether they are in its own database and the domain has a section ``[evaluation]``.
    """
    source, columns = domain.source, domain.source.interactions
    is_known = source.in_warehouse and domain.evaluation is not None
    with engine.begin() as connection:
        if not is_known or domain.evaluation is None:
            connection.execute(INTERACTION_SOURCE.delete().where(INTERACTION_SOURCE.c.domain == domain.name))
            return False
        row = {
            "domain": domain.name,
            "db_schema": source.db_schema,
            "table_name": columns.table,
            "user_column": columns.user,
            "item_column": columns.item,
            "value_column": columns.value,
            "time_column": columns.time,
            "per_second": TIME_UNITS[columns.time_unit] if columns.time_unit else None,
            "positive_from": domain.evaluation.positive_from,
            "none_values": [
                float(value) for value in columns.none_values.get(columns.value, ()) if not isinstance(value, str)
            ],
        }
        statement = insert(INTERACTION_SOURCE).values(row)
        connection.execute(statement.on_conflict_do_update(index_elements=["domain"], set_=row))
    return True


def register_all(engine: Engine, settings: Settings) -> list[SettingError]:
    """:func:`register` every configured domain; one that is not configured here may be so elsewhere, and stays.

    Returns:
        What is wrong with the files that cannot be read; what is registered of their domains stays, too.
    """
    unread = []
    for name in domain_names(settings):
        try:
            register(engine, load_domain(settings, name))
        except SettingError as error:
            unread.append(error)
    return unread


def stream_interactions(engine: Engine, domain: str) -> Iterator[pa.RecordBatch]:
    """A domain's interactions, of schema INTERACTION, in the order of user, time and item; memory holds a batch.

    Ids are in the order of their bytes. The label is 1 for a like.

    Raises:
        SourceError: they are not in the warehouse's database, or cannot be read there; says what to do.
    """
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        try:
            query = driver.execute("SELECT knowledge.interaction_query(%s, false)", [domain]).fetchone()
            assert query is not None
            with driver.cursor("interactions", binary=True) as cursor:
                cursor.execute(_in_order(query[0]))
                while rows := cursor.fetchmany(_ROWS_PER_BATCH):
                    yield _batch(rows)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            raise SourceError(f"domain {domain}: {reason(error)}") from None


def _in_order(query: str) -> bytes:
    return f"""
        SELECT user_id, item_id, CAST(extract(epoch FROM moment) * 1000000 AS bigint), value, CAST(liked AS integer)
        FROM ({query}) AS i ORDER BY user_id COLLATE "C", moment, item_id COLLATE "C"
    """.encode()  # noqa: S608 - made by the database, with names quoted


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    user, item, time, value, label = zip(*rows, strict=True)
    columns = [user, item, pa.array(time, pa.int64()).cast(TIME), value, label]
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(columns, INTERACTION, strict=True)], schema=INTERACTION
    )
