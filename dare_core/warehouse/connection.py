"""Connections to the warehouse: SQLAlchemy over psycopg 3, with pgvector's types."""

from typing import Any, Final

import psycopg
from pgvector.psycopg import register_vector
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from dare_core.errors import SettingError, WarehouseError

_SCHEMES: Final = ("postgresql", "postgres", "postgresql+psycopg")
_CONNECT_SECONDS: Final = 15


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


def driver_cursor(connection: Connection) -> psycopg.Cursor[Any]:
    """A cursor of psycopg's own, for COPY and composed SQL, in the transaction of a SQLAlchemy connection."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver.cursor()


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
