"""The warehouse's schema version: brought up to date by the migrations and views in ``sql/``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import errors
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from dare_core.config.settings import PROJECT_DIR
from dare_core.errors import WarehouseError
from dare_core.warehouse.connection import reason
from dare_core.warehouse.tables import PARTITIONS, SCHEMA

_SQL_DIR: Final = PROJECT_DIR / "sql"
_VERSION_TABLE: Final = "schema_version"
#: The schemas that migrations make, but that of source tables.
_SCHEMAS: Final = ("features", "staging", PARTITIONS, SCHEMA)
_OLDEST_PGVECTOR: Final = (0, 8)  # the first with iterative index scans


def upgrade(engine: Engine) -> None:
    """Bring an empty or older database to the current schema, whole or not at all; upgrades at once take turns.

    Raises:
        WarehouseError: the extension ``vector`` is missing or too old, the role lacks a right, or the database is newer
            than this code.
    """
    with _migrating(engine) as connection:
        _require_known(connection)
        _ensure_vector(connection)
        _migrate(connection)
        _run_scripts(connection)


def rebuild(
    engine: Engine, version: str, make_room: Callable[[Connection], None], fill: Callable[[Connection], None]
) -> None:
    """Make the schemas anew as a version had them, have them filled, and bring them to the current one.

    All in one transaction, in which upgrades wait.

    Args:
        engine: the database.
        version: of the schema.
        make_room: called first: raises where something is there that must stay.
        fill: called when the tables of the version are there.

    Raises:
        WarehouseError: as :func:`upgrade`, or this code does not know the version.
    """
    require_known(version, "the backup")
    with _migrating(engine) as connection:
        make_room(connection)
        for schema in _SCHEMAS:
            connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        _ensure_vector(connection)
        _migrate(connection, version)
        fill(connection)
        _migrate(connection)
        _run_scripts(connection)


@contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('dare warehouse upgrade'))"))
            yield connection
    except DBAPIError as error:
        raise explain(error) from error
    engine.dispose()  # sessions from before the extension do not know its types


def _migrate(connection: Connection, version: str = "head") -> None:
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    config = _config()
    config.attributes["connection"] = connection
    config.attributes["version_table"] = {"version_table": _VERSION_TABLE, "version_table_schema": SCHEMA}
    command.upgrade(config, version)


def _run_scripts(connection: Connection) -> None:
    connection.execute(text("SET LOCAL check_function_bodies = off"))  # they may call each other in any order
    for script in (*_scripts("views"), *_scripts("functions"), _SQL_DIR / "access.sql"):
        connection.exec_driver_sql(script.read_text("utf-8").replace("%", "%%"))


def schema_version(engine: Engine) -> str | None:
    """The database's schema version; None when it has none yet.

    Raises:
        WarehouseError: it is newer than this code.
    """
    with engine.connect() as connection:
        return _require_known(connection)


def require_current(engine: Engine) -> None:
    """Check that the database has the schema that this code works with.

    Raises:
        WarehouseError: it has not; says what to run.
    """
    found = schema_version(engine)
    if found != ScriptDirectory.from_config(_config()).get_current_head():
        state = "has no tables yet" if found is None else f"has the older schema version {found}"
        raise WarehouseError(f"the warehouse {state}; run `dare warehouse upgrade`")


def explain(error: DBAPIError) -> WarehouseError:
    """What a failed upgrade needs from the administrator, in one line."""
    said = reason(error)
    match error.orig:
        case errors.InsufficientPrivilege() if "extension" in said:
            return WarehouseError(
                f"the role may not create the extension vector ({said}); "
                "ask an administrator to run `CREATE EXTENSION vector` in this database"
            )
        case errors.InsufficientPrivilege() if "role" in said:
            return WarehouseError(
                f"the role may not create the roles dare_loader and dare_reader ({said}); "
                "ask an administrator to run `CREATE ROLE dare_loader; CREATE ROLE dare_reader`"
            )
        case errors.InsufficientPrivilege():
            return WarehouseError(
                f"the role may not create the warehouse's tables ({said}); ask for CREATE on the database"
            )
        case errors.FeatureNotSupported() | errors.UndefinedFile() if "extension" in said:
            return WarehouseError(
                f"the PostgreSQL server lacks pgvector ({said}); install it on the server "
                "(package postgresql-NN-pgvector, or the image pgvector/pgvector) and upgrade again"
            )
    return WarehouseError(f"the warehouse cannot be upgraded: {said}")


def _ensure_vector(connection: Connection) -> None:
    connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
    connection.execute(text("SELECT '[1]'::vector"))  # loads it: before that, nobody may set its parameters
    version: str = connection.execute(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")).scalar_one()
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_PGVECTOR:
        raise WarehouseError(
            f"the database has pgvector {version}, 0.8 or newer is needed; run `ALTER EXTENSION vector UPDATE`"
        )


def _require_known(connection: Connection) -> str | None:
    """The database's schema version; None when it has none yet."""
    context = MigrationContext.configure(
        connection, opts={"version_table": _VERSION_TABLE, "version_table_schema": SCHEMA}
    )
    found = context.get_current_revision()
    if found is not None:
        require_known(found, "the warehouse")
    return found


def require_known(version: str, what: str) -> None:
    """Check that this code has the migrations up to a schema version.

    Raises:
        WarehouseError: it has not; names ``what`` is of that version.
    """
    if version not in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}:
        raise WarehouseError(f"{what} has schema version {version}, which is newer than this code; update the code")


def _scripts(folder: str) -> list[Path]:
    return sorted((_SQL_DIR / folder).glob("*.sql"))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SQL_DIR / "migrations").replace("%", "%%"))
    return config
