"""The questions in ``sql/queries``: one file each, with its parameters declared in its header.

A parameter's line is ``-- :name type = default  description``; types are ``text``, ``int``, ``float`` and ``time``, and
a default may be ``null``. The body binds them as ``:name``. Statements before the last one set what the last one needs.
What comes before the parameters says what the query is for. ``{table}``, ``{user}``, ``{item}``, ``{value}`` and
``{time}`` stand for the interactions of the parameter ``domain``, as its file names them; ``{moment}`` is an expression
of the time, also where the column counts from 1970 on.
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

from dare_core.config.domains import TIME_UNITS, Domain, load_domain
from dare_core.config.settings import PROJECT_DIR, Settings, load_settings
from dare_core.errors import InputError, WarehouseError
from dare_core.warehouse.connection import reason
from dare_core.warehouse.known_domains import require_domain

_FOLDER: Final = PROJECT_DIR / "sql" / "queries"
_PARAMETER: Final = re.compile(r"^-- :(?P<name>\w+) (?P<type>\w+) = (?P<default>\S+)  (?P<words>.+)$", re.MULTILINE)
_INTERACTIONS: Final = re.compile(r"\{(table|user|item|value|time|moment)\}")


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


@dataclass(frozen=True)
class Question:
    """What a query is for, in a sentence, and what each of its parameters is."""

    name: str
    purpose: str
    parameters: dict[str, str]


def questions() -> list[Question]:
    """All there are, as their headers describe them."""
    return [_described(name, _split(_FOLDER / f"{name}.sql")[0]) for name in names()]


def _described(name: str, header: str) -> Question:
    words = header[: found.start()] if (found := _PARAMETER.search(header)) else header
    paragraph = " ".join(line.removeprefix("--").strip() for line in words.splitlines()).split("  ")[0]
    parameters = {
        match["name"]: f"{match['words']} ({match['type']}, default {match['default']})"
        for match in _PARAMETER.finditer(header)
    }
    return Question(name, paragraph.strip(), parameters)


def names() -> list[str]:
    """The questions there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.sql"))


def run(engine: Engine, name: str, params: Mapping[str, str], settings: Settings | None = None) -> QueryResult:
    """Ask one of them, in a read-only transaction.

    Args:
        engine: the warehouse.
        name: one of :func:`names`.
        params: values as text; the defaults stand for those that are not given.
        settings: whose domains are meant; default: those in force.

    Raises:
        SettingError: the parameter ``domain`` names none.
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
    settings = settings or load_settings()
    asked = {parameter: params.get(parameter, match["default"]) for parameter, match in declared.items()}
    if _INTERACTIONS.search(statements[-1]):
        statements[-1] = _of_domain(engine, name, load_domain(settings, asked["domain"]), statements[-1])
    try:
        if "domain" in asked:
            require_domain(settings, engine, asked["domain"])
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


def _of_domain(engine: Engine, query: str, domain: Domain, statement: str) -> str:
    """A statement about the domain's own interactions."""
    source = domain.source
    if not source.in_warehouse:
        where = source.format if source.format != "postgres" else "another database"
        raise InputError(
            f"query {query} reads tables of the warehouse's database, and the interactions of domain {domain.name} are "
            f"not there ({where}); join them with what `dare features export` writes"
        )
    quote = engine.dialect.identifier_preparer.quote_identifier
    columns = source.interactions
    names = {name: quote(getattr(columns, name)) for name in ("user", "item", "value", "time")}
    names["moment"] = f"CAST({names['time']} AS timestamptz)"
    if columns.time_unit:
        names["moment"] = (
            f"(timestamptz '1970-01-01 00:00+00' + floor(CAST({names['time']} AS numeric) * 1000000 / "
            f"{TIME_UNITS[columns.time_unit]}) * interval '1 microsecond')"
        )
    names["table"] = f"{quote(source.db_schema)}.{quote(columns.table)}"
    return _INTERACTIONS.sub(lambda found: names[found[1]].replace(":", "\\:"), statement)


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
