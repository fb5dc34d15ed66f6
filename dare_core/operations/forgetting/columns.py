"""Columns of the warehouse's tables as bytes, many rows at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import numpy as np
import psycopg
from numpy.typing import NDArray

_ROWS: Final = 2000
#: Stands between two values. No value of PostgreSQL's holds it, and nothing that is looked for spans so much of it.
SEPARATOR: Final = b"\0" * 16


@dataclass(frozen=True)
class Column:
    """Some rows' values of a column, nulls left out.

    Attributes:
        name: of the column.
        content: the values, one behind the other.
        starts: where each begins.
    """

    name: str
    content: bytes
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, values: Sequence[bytes | None]) -> "Column":
        """A column of some values."""
        there = [value for value in values if value is not None]
        starts = np.cumsum([0, *(len(value) + len(SEPARATOR) for value in there)])[:-1]
        return cls(name, SEPARATOR.join(there), starts)

    def rows(self, places: Sequence[int]) -> int:
        """In how many values some places of the content lie."""
        return len(np.unique(np.searchsorted(self.starts, np.asarray(places, np.int64), "right")))


def columns_of(
    cursor: psycopg.Cursor[Any], table: str, names: Sequence[str], where: str, bound: Mapping[str, Any]
) -> Iterator[Column]:
    """Columns of a table as text in UTF-8, in parts of some thousand rows.

    Args:
        cursor: in a transaction.
        table: its name, quoted where that is needed.
        names: of the columns, likewise.
        where: which rows: the rest of the query.
        bound: values that the query names.
    """
    values = ", ".join(f"convert_to({name}::text, 'UTF8')" for name in names)
    with cursor.connection.cursor(f"columns_{uuid4().hex}", binary=True) as rows:
        rows.execute(f"SELECT {values} FROM {table} {where}".encode(), bound)  # noqa: S608 - names of ours
        while part := rows.fetchmany(_ROWS):
            for name, column in zip(names, zip(*part, strict=True), strict=True):
                yield Column.of(name, column)
