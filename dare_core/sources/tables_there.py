"""Whether the tables of a domain's source are there, asked before Spark takes half a minute to start and find out."""

import csv
from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg
import pyarrow.parquet as pq
from psycopg import sql

from dare_core.config.domains import CsvFormat, Domain, EntityTable, InteractionTable
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


def what_is_checked(domain: Domain) -> str:
    """What :func:`require_tables` looks at in a domain's tables, in words."""
    tables = ", ".join(spec.table for _, spec in _sections(domain))
    match domain.source.format:
        case "postgres":
            return f"{tables}: there, with every column that the file names"
        case "jdbc":
            return f"{tables}: not looked at; a pull asks the database"
        case _ if _folder(domain) is not None:
            return f"{tables}: there, with every column that the file names in the first file of each"
        case _:
            return f"{tables}: not looked at; a pull reads the files"


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


def require_columns_of_files(domain: Domain) -> None:
    """Check the columns of tables that are local files: in the first file of each, as it stands on the disk.

    Raises:
        SourceError: a column is missing, or the file cannot be read.
    """
    folder = _folder(domain)
    if folder is None:
        return
    for section, spec in _sections(domain):
        file = _first_file(folder, spec.table, domain.source.format)
        if file is None or file.suffix not in (".parquet", ".csv"):  # packed ones are for Spark to read
            continue
        try:
            there = _columns(file, domain.source.csv)
        except (OSError, ValueError, csv.Error) as error:
            raise SourceError(f"{_about(domain, section, spec.table)}: {file} cannot be read: {error}") from None
        there += [part.partition("=")[0] for part in file.relative_to(folder).parts if "=" in part]
        _require_named(domain, section, spec, there)


def _first_file(folder: Path, table: str, suffix: str) -> Path | None:
    file = folder / f"{table}.{suffix}"
    return file if file.is_file() else next(iter(sorted((folder / table).rglob(f"*.{suffix}"))), None)


def _columns(file: Path, written: CsvFormat) -> list[str]:
    if file.suffix == ".parquet":
        return list(pq.read_schema(file).names)
    with file.open(encoding=written.encoding, newline="", errors="replace") as lines:
        rows = csv.reader(lines, delimiter=written.separator, quotechar=written.quote)
        return [name.removeprefix("\ufeff") for name in next(rows, [])]


def _folder(domain: Domain) -> Path | None:
    """Where the tables' files are; None where they are no local files, but for Spark to read."""
    location = domain.source.location
    if domain.source.format not in ("parquet", "csv") or location is None or ":" in location.partition("/")[0]:
        return None
    return Path(location)


def _require_files(domain: Domain) -> None:
    folder, suffix = _folder(domain), domain.source.format
    if folder is None:
        return
    for section, spec in _sections(domain):
        base = folder / spec.table
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
        _require_named(domain, section, spec, [column.name for column in found.description or ()])


def _require_named(domain: Domain, section: str, spec: EntityTable | InteractionTable, there: list[str]) -> None:
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
