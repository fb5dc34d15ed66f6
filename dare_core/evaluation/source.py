"""A domain's source tables, as an evaluation reads them: whole, into memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from dare_core.config.domains import Domain
from dare_core.errors import SettingError, SourceError
from dare_core.warehouse.connection import reason


class Interaction(NamedTuple):
    """A user met an item."""

    time: datetime
    user: str
    item: str
    value: float


@dataclass(frozen=True)
class SourceRows:
    """A domain's source tables: rows of items and users by id, and interactions in the order of time."""

    items: Mapping[str, Mapping[str, Any]]
    users: Mapping[str, Mapping[str, Any]]
    interactions: Sequence[Interaction]


def read_source(engine: Engine, domain: Domain) -> SourceRows:
    """Read a domain's tables from the warehouse's database.

    Raises:
        SettingError: the domain's tables lie elsewhere.
        SourceError: they are not there or lack a column.
    """
    source = domain.source
    if not source.in_warehouse:
        raise SettingError(
            f"domain {domain.name}: source.format {source.format} with a place of its own cannot be evaluated; "
            "import the tables into the warehouse's database first"
        )
    what = source.interactions
    read = (
        "SELECT {} AS time, CAST({} AS text) AS user, CAST({} AS text) AS item, CAST({} AS double precision) AS value"
    )
    columns = (_quoted(engine, name) for name in (what.time, what.user, what.item, what.value))
    try:
        with engine.connect() as connection:
            rows = connection.execute(
                text(f"{read.format(*columns)} FROM {_table(engine, domain, what.table)} ORDER BY 1, 2, 3")
            )
            interactions = [
                Interaction(_aware(row.time, what.time) or row.time, row.user, row.item, row.value)
                for row in rows
                if None not in tuple(row)  # a pull drops them too
            ]
            items, users = (
                {
                    str(row[spec.id]): {**row, spec.updated_at: _aware(row[spec.updated_at], spec.updated_at)}
                    for row in connection.execute(
                        text(f"SELECT * FROM {_table(engine, domain, spec.table)}")  # noqa: S608 - quoted
                    ).mappings()
                }
                for spec in (source.items, source.users)
            )
    except (DBAPIError, KeyError) as error:
        raise SourceError(
            f"the tables of domain {domain.name} cannot be read: {reason(error)}; run `dare source import`, or mend "
            f"config/{domain.name}.toml"
        ) from None
    if not interactions:
        raise SourceError(f"table {what.table} of domain {domain.name} has no rows")
    return SourceRows(items, users, interactions)


def _aware(time: date | None, column: str) -> datetime | None:
    """A time to compare with all others: without a zone it is UTC, as for a pull; a date is its first moment."""
    if time is None:
        return None
    if not isinstance(time, date):
        raise SourceError(f"column {column!r} holds {type(time).__name__}, and no times")
    if not isinstance(time, datetime):
        time = datetime.combine(time, datetime.min.time(), UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _table(engine: Engine, domain: Domain, name: str) -> str:
    return f"{_quoted(engine, domain.source.db_schema)}.{_quoted(engine, name)}"


def _quoted(engine: Engine, name: str) -> str:
    return engine.dialect.identifier_preparer.quote_identifier(name)
