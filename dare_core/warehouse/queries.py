"""The questions in ``sql/queries``: one file each, with its parameters declared in its header.

A parameter's line is ``-- :name type = default  description``; types are ``text``, ``int``, ``float`` and ``time``, and
a default may be ``null``. The body binds them as ``:name``. Statements before the last one set what the last one needs.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import BigInteger, Double, Engine, Text, bindparam, text
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from dare_core.config.settings import PROJECT_DIR
from dare_core.errors import InputError, WarehouseError
from dare_core.warehouse.connection import reason

_FOLDER: Final = PROJECT_DIR / "sql" / "queries"
_PARAMETER: Final = re.compile(r"^-- :(?P<name>\w+) (?P<type>\w+) = (?P<default>\S+)", re.MULTILINE)


def _time(value: str) -> datetime:
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_TYPES: Final[dict[str, tuple[Callable[[str], object], TypeEngine[Any]]]] = {
    "text": (str, Text()),
    "int": (int, BigInteger()),
    "float": (float, Double()),
    "time": (_time, TIMESTAMP(timezone=True)),
}


@dataclass(frozen=True)
class QueryResult:
    """An answer: the columns' names, and the rows."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def names() -> list[str]:
    """The questions there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.sql"))


def run(engine: Engine, name: str, params: Mapping[str, str]) -> QueryResult:
    """Ask one of them, in a read-only transaction.

    Args:
        engine: the warehouse.
        name: one of :func:`names`.
        params: values as text; the defaults stand for those that are not given.

    Raises:
        InputError: no such question or parameter, or a value that is not of the parameter's type.
        WarehouseError: a table that it reads is not there.
    """
    if name not in names():
        raise InputError(f"query {name!r} does not exist; there are: {', '.join(names())}")
    header, statements = _split(_FOLDER / f"{name}.sql")
    declared = {match["name"]: match for match in _PARAMETER.finditer(header)}
    if unknown := sorted(params.keys() - declared.keys()):
        there_are = ", ".join(declared) or "none"
        raise InputError(f"query {name} has no parameter {unknown[0]!r}; there are: {there_are}")
    bound = [
        _bind(
            name,
            parameter,
            match["type"],
            params.get(parameter, None if match["default"] == "null" else match["default"]),
        )
        for parameter, match in declared.items()
    ]
    try:
        with engine.connect().execution_options(postgresql_readonly=True) as connection:
            for statement in statements[:-1]:
                connection.exec_driver_sql(statement)
            result = connection.execute(text(statements[-1]).bindparams(*bound))
            return QueryResult(tuple(result.keys()), [tuple(row) for row in result])
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable):
            hint = "run `dare warehouse upgrade` for the warehouse's tables, `dare source import` for the source's"
            raise WarehouseError(f"query {name}: {reason(error)}; {hint}") from error
        if isinstance(error.orig, psycopg.DataError):
            raise InputError(f"query {name}: {reason(error)}") from error
        raise


def _split(path: Path) -> tuple[str, list[str]]:
    """The comment lines, and the statements."""
    lines = path.read_text("utf-8").splitlines()
    header = "\n".join(line for line in lines if line.startswith("--"))
    body = "\n".join(line for line in lines if not line.startswith("--"))
    return header, [statement.strip() for statement in body.split(";") if statement.strip()]


def _bind(query: str, name: str, kind: str, value: str | None) -> Any:
    parse, column_type = _TYPES[kind]
    try:
        return bindparam(name, None if value is None else parse(value), column_type)
    except ValueError:
        raise InputError(f"query {query}: parameter {name} is {value!r}, which is no {kind}") from None
