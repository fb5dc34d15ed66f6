"""Roles and databases of a fresh PostgreSQL server, as an installation's secrets name them."""

from pathlib import Path
from typing import Final

from psycopg import sql
from sqlalchemy import URL, Connection, make_url

from dare_core.errors import SettingError
from dare_core.warehouse.connection import connected, driver_cursor
from dare_core.warehouse.server import database_url

#: What logins are members of: who loads, and who reads views. ``sql/access.sql`` says what they may.
ACCESS_ROLES: Final = ("dare_loader", "dare_reader")

_ADMINISTRATOR: Final = "postgres"


def create_roles(secrets: Path) -> list[str]:
    """Create the roles of Airflow and of the warehouse, each with a database of its own; set their passwords anew.

    The warehouse's gets the ``vector`` extension and the roles of loaders and readers, which its own role may not be
    allowed to create.

    Args:
        secrets: the folder that ``scripts.make_secrets`` made.

    Returns:
        The roles' names.

    Raises:
        SettingError: a secret is missing.
        WarehouseError: the server cannot be reached, or refuses.
    """
    warehouse = _url(secrets, "dare_warehouse_url")
    owners = [_url(secrets, "airflow_database_url"), warehouse]
    password = _read(secrets, "postgres_password")
    server = warehouse.set(username=_ADMINISTRATOR, password=password, database=_ADMINISTRATOR)
    for owner in owners:
        _create_owner(server, owner)
    with connected(_text(server.set(database=warehouse.database))) as engine, engine.begin() as connection:
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
        for role in ACCESS_ROLES:
            if not _is_role(connection, role):
                connection.exec_driver_sql(f"CREATE ROLE {role} NOLOGIN")
    return [str(owner.username) for owner in owners]


def _create_owner(server: URL, owner: URL) -> None:
    role, password = sql.Identifier(str(owner.username)), str(owner.password)
    with connected(_text(server)) as engine:
        with engine.begin() as connection, driver_cursor(connection) as cursor:
            known = _is_role(connection, str(owner.username))
            make = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}" if known else "CREATE ROLE {} LOGIN PASSWORD {}")
            cursor.execute(make.format(role, password))
        database_url(_text(server), str(owner.database))
        with engine.begin() as connection, driver_cursor(connection) as cursor:
            give = sql.SQL("ALTER DATABASE {} OWNER TO {}")
            cursor.execute(give.format(sql.Identifier(str(owner.database)), role))


def _is_role(connection: Connection, name: str) -> bool:
    return connection.exec_driver_sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).first() is not None


def _url(secrets: Path, name: str) -> URL:
    return make_url(_read(secrets, name))


def _read(secrets: Path, name: str) -> str:
    try:
        return (secrets / name).read_text("ascii").strip()
    except FileNotFoundError:
        raise SettingError(
            f"there is no secret {name} in {secrets}; scripts/make_secrets.py makes all of them"
        ) from None


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
