"""Whether the tables of a domain's source are there, asked before Spark takes half a minute to start and find out."""

from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from dare_core.config.domains import Domain, EntityTable, InteractionTable
from dare_core.errors import SettingError, SourceError

#: Keys of an entity's JSON that the platform gives a meaning; an attribute may not take them.
_RESERVED: Final = {"title", "history", "value", "time"}


def require_tables(domain: Domain, warehouse_url: str) -> None:
    """Check the group and the title that a domain file names, and its tables and columns as far as that is quick.

    Files are looked for and not opened. A server that does not answer, and one behind JDBC, is left to Spark.

    Raises:
        SettingError: see :func:`require_names`.
        SourceError: a table or column is missing.
    """
    require_names(domain)
    source = domain.source
    if source.format in ("parquet", "csv"):
        _require_files(domain)
    elif source.format == "postgres":
        try:
            with closing(psycopg.connect(source.location or warehouse_url, connect_timeout=15)) as connection:
                _require_columns(domain, connection)
        except psycopg.OperationalError:
            return


def require_names(domain: Domain) -> None:
    """Check what a domain file calls things.

    Raises:
        SettingError: an attribute has a reserved name, the group is no attribute, or items have no title.
    """
    for section, spec in (("items", domain.source.items), ("users", domain.source.users)):
        taken = [name for name in spec.attributes if name in _RESERVED and name != spec.title]
        if taken:
            raise SettingError(f"domain {domain.name}: source.{section}.attributes: {taken[0]!r} is a reserved name")
        if spec.group not in spec.attributes:
            raise SettingError(f"domain {domain.name}: source.{section}.group: {spec.group!r} is no attribute")
    if domain.source.items.title is None:
        raise SettingError(f"domain {domain.name}: source.items.title is missing")


def _require_files(domain: Domain) -> None:
    location, suffix = domain.source.location, domain.source.format
    if location is None or ":" in location.partition("/")[0]:  # a URL is for Spark to read
        return
    for section, spec in _sections(domain):
        base = Path(location) / spec.table
        if not base.exists() and not Path(f"{base}.{suffix}").exists():
            raise SourceError(f"{_about(domain, section, spec.table)}: there is neither {base}.{suffix} nor {base}/")


def _require_columns(domain: Domain, connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    schema = domain.source.db_schema
    for section, spec in _sections(domain):
        try:
            found = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(sql.Identifier(schema, spec.table)))
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            said = error.diag.message_primary or type(error).__name__
            raise SourceError(f"{_about(domain, section, spec.table)} cannot be read: {said}") from None
        there = [column.name for column in found.description or ()]
        for key, names in spec.columns.items():
            for name in names:
                if name not in there:
                    raise SourceError(
                        f"{_about(domain, section, spec.table)}: no column {name!r} (source.{section}.{key}); "
                        f"there are: {', '.join(there)}"
                    )


def _sections(domain: Domain) -> "list[tuple[str, EntityTable | InteractionTable]]":
    source = domain.source
    return [("items", source.items), ("users", source.users), ("interactions", source.interactions)]


def _about(domain: Domain, section: str, table: str) -> str:
    return f"domain {domain.name}: source table {table!r} (source.{section}.table)"
