"""A domain's source tables, as an evaluation reads them into memory: whole, or of large ones what some users did."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from dare_core.config.domains import Domain
from dare_core.errors import SettingError, SourceError
from dare_core.warehouse.connection import reason

#: Rows that the database sends at once.
_ROWS_AT_ONCE: Final = 10_000
_READ: Final = (
    "SELECT {} AS time, CAST({} AS text) AS user, CAST({} AS text) AS item, CAST({} AS double precision) AS value "
    "FROM {} ORDER BY 1, 2, 3"
)
#: Of a user's hash.
_HASHES: Final = 2**63


class Interaction(NamedTuple):
    """A user met an item."""

    time: datetime
    user: str
    item: str
    value: float


@dataclass(frozen=True)
class SourceRows:
    """A domain's source tables: rows of items and users by id, and interactions in the order of time.

    Attributes:
        share: of the users that are here, with all that they did and the items that they met; 1: everything is.
    """

    items: Mapping[str, Mapping[str, Any]]
    users: Mapping[str, Mapping[str, Any]]
    interactions: Sequence[Interaction]
    share: float = 1.0


def read_source(engine: Engine, domain: Domain) -> SourceRows:
    """Read a domain's tables from the warehouse's database.

    Where there are more interactions than ``evaluation.max_interactions``, a share of the users is read, chosen by a
    hash of the id: the same users whenever it is done.

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
    try:
        with engine.connect() as connection:
            share = _share(connection, domain)
            chosen = _chosen(engine, what.user, share)
            columns = (_quoted(engine, name) for name in (what.time, what.user, what.item, what.value))
            rows = _rows(connection, _READ.format(*columns, f"{_table(engine, domain, what.table)}{chosen}"))
            interactions = [
                Interaction(_aware(row["time"], what.time) or row["time"], row["user"], row["item"], row["value"])
                for row in rows
                if None not in row.values()  # a pull drops them too
            ]
            met = None if share == 1 else {one.item for one in interactions}
            items, users = (
                {
                    str(row[spec.id]): {**row, spec.updated_at: _aware(row[spec.updated_at], spec.updated_at)}
                    for row in _rows(connection, f"SELECT * FROM {_table(engine, domain, spec.table)}{of_them}")  # noqa: S608
                    if wanted is None or str(row[spec.id]) in wanted
                }
                for spec, of_them, wanted in (
                    (source.items, "", met),
                    (source.users, _chosen(engine, source.users.id, share), None),
                )
            )
    except (DBAPIError, KeyError) as error:
        raise SourceError(
            f"the tables of domain {domain.name} cannot be read: {reason(error)}; run `dare source import`, or mend "
            f"config/{domain.name}.toml"
        ) from None
    if not interactions:
        raise SourceError(f"table {what.table} of domain {domain.name} has no rows")
    return SourceRows(items, users, interactions, share)


def _share(connection: Connection, domain: Domain) -> float:
    """Of the users, so that no more interactions are read than an evaluation may."""
    table = _table(connection.engine, domain, domain.source.interactions.table)
    count: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()  # noqa: S608 - quoted
    most = domain.evaluation.max_interactions if domain.evaluation else count
    return min(1.0, most / max(count, 1))


def _chosen(engine: Engine, user: str, share: float) -> str:
    """The condition that a row is of a user who is read."""
    if share == 1:
        return ""
    return (
        f" WHERE (hashtextextended(CAST({_quoted(engine, user)} AS text), 0) & {_HASHES - 1}) < {int(share * _HASHES)}"
    )


def _rows(connection: Connection, query: str) -> Iterator[dict[str, Any]]:
    for row in connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(text(query)).mappings():
        yield dict(row)


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
