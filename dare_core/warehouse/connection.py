"""Connections to the warehouse: SQLAlchemy over psycopg 3, with pgvector's types; transactions, locks and streams."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import psycopg
import pyarrow as pa
from pgvector.psycopg import register_vector
from sqlalchemy import URL, Connection, Engine, Executable, Row, create_engine, event, func, make_url, select
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from dare_core.errors import InputError, SettingError, WarehouseError

_SCHEMES: Final = ("postgresql", "postgres", "postgresql+psycopg")
_CONNECT_SECONDS: Final = 15
#: Rows that a stream holds at once.
ROWS_PER_BATCH: Final = 1000


def connect(url: str) -> Engine:
    """An engine for the database at ``url``, which was reached once.

    Sessions work in UTC, and read and write ``vector`` columns once the extension is there.

    Args:
        url: ``postgresql://``, ``postgres://`` or ``postgresql+psycopg://`` with what libpq allows after it.

    Raises:
        SettingError: it is no such URL. Neither error ever shows a password.
        WarehouseError: nothing answers there, or it refuses the login.
    """
    engine = create_engine(_parse(url), connect_args={"connect_timeout": _CONNECT_SECONDS}, pool_pre_ping=True)
    event.listen(engine, "connect", _prepare)
    try:
        with engine.connect():
            return engine
    except DBAPIError as error:
        engine.dispose()
        raise WarehouseError(f"the warehouse {_place(engine.url)} cannot be reached: {reason(error)}") from None


@contextmanager
def connected(url: str) -> Iterator[Engine]:
    """What :func:`connect` gives, until the block ends: its connections are closed then.

    Raises:
        SettingError, WarehouseError: see there.
    """
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


def driver_cursor(connection: Connection) -> psycopg.Cursor[Any]:
    """A cursor of psycopg's own, for COPY and composed SQL, in the transaction of a SQLAlchemy connection."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver.cursor()


@contextmanager
def transaction(engine: Engine) -> Iterator[psycopg.Cursor[Any]]:
    """A psycopg cursor in a transaction that is committed when the block ends well.

    Raises:
        InputError: rows break a rule of the tables.
        WarehouseError: there are no tables, or the connection broke: before the end, and nothing was loaded; or while
            the transaction was committed, and nobody knows.
    """
    try:
        with engine.begin() as connection:
            try:
                with driver_cursor(connection) as cursor:
                    yield cursor
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
                raise WarehouseError(f"{reason(error)}; run `dare warehouse upgrade`") from error
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                raise InputError(f"the warehouse does not accept these rows: {reason(error)}") from error
            except psycopg.OperationalError as error:
                connection.invalidate()
                raise WarehouseError(
                    f"the warehouse broke off, and nothing was loaded; load again: {reason(error)}"
                ) from error
    except OperationalError as error:  # of BEGIN or COMMIT
        raise WarehouseError(
            f"the warehouse broke off, perhaps while it committed; load again, which changes nothing that is there: "
            f"{reason(error)}"
        ) from error


def lock(cursor: psycopg.Cursor[Any], what: str) -> None:
    """Loads of one kind take turns; the lock goes with the transaction."""
    cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"dare load {what}"])


def lock_knowledge(cursor: psycopg.Cursor[Any], domains: Iterable[str]) -> None:
    """Whoever changes the knowledge of a domain takes turns; those of other domains do not wait."""
    for domain in sorted(set(domains)):  # in one order, so that no two wait for each other
        lock(cursor, f"knowledge of {domain}")


def clock(engine: Engine) -> datetime:
    """The database's time."""
    with engine.connect() as connection:
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now


def stream(engine: Engine, query: Executable, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Read through a server-side cursor: memory holds a batch, whatever the number of rows."""
    with engine.connect().execution_options(yield_per=ROWS_PER_BATCH) as connection:
        for rows in connection.execute(query).partitions(ROWS_PER_BATCH):  # of textual SQL, all rows without
            yield as_batch(rows, schema)


def as_batch(rows: Sequence[Row[Any]] | Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows, at least one, whose values stand in the order of a schema."""
    columns = zip(*rows, strict=True)
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )


def reason(error: Exception) -> str:
    """What the server or driver said, in one line, without SQL and parameters."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    message = getattr(getattr(cause, "diag", None), "message_primary", None) or str(cause)
    return " ".join(message.split()) or type(cause).__name__


def _parse(url: str) -> URL:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise SettingError(
            "the warehouse URL (DARE_WAREHOUSE_URL) must start with postgresql://, postgres:// or postgresql+psycopg://"
        )
    try:
        if rest.count("@") > 1:  # where the password ends is anybody's guess, and a guess may print half of it
            raise ValueError
        return make_url(f"postgresql+psycopg://{rest}")
    except (ValueError, SQLAlchemyError):
        raise SettingError(
            "the warehouse URL (DARE_WAREHOUSE_URL) cannot be read; expected "
            "postgresql://user:password@host:port/database, with special characters percent-encoded"
        ) from None


def _place(url: URL) -> str:
    host = url.host or url.query.get("host") or "on this machine"
    return f"{url.database or ''} at {host if isinstance(host, str) else ','.join(host)}".strip()


def _prepare(connection: psycopg.Connection[Any], _record: object) -> None:
    connection.execute("SET TIME ZONE 'UTC'")
    if connection.execute("SELECT to_regtype('vector') IS NOT NULL").fetchone() == (True,):
        register_vector(connection)
    connection.commit()
