"""Arrow tables into PostgreSQL by binary COPY.

Rows are encoded a column at a time: a row at a time, Python would take longer than the database does.
"""

from typing import Any, Final

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from sqlalchemy.dialects import postgresql

from dare_core.schemas import TIME
from dare_core.warehouse import tables

_ROWS_AT_ONCE: Final = 4096
_BYTES_AT_ONCE: Final = 64 * 2**20  # encoded bytes are counted by 32 bits; rows may be many times the mean
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_END: Final = b"\xff\xff"

#: What PostgreSQL calls the types of an array's elements.
_ELEMENTS: Final = {pa.string(): 25, pa.int32(): 23, pa.int64(): 20, pa.float64(): 701, pa.bool_(): 16, TIME: 1184}
_NUMBERS: Final = {pa.int32(): ">i4", pa.int64(): ">i8", pa.float64(): ">f8"}
_EPOCH_US: Final = 946_684_800_000_000  # PostgreSQL counts from the year 2000


def copy_rows(cursor: psycopg.Cursor[Any], target: sql.Composable, table: pa.Table) -> None:
    """COPY an Arrow table, in binary, into a database table that has columns of its names and types."""
    columns = sql.SQL(", ").join(map(sql.Identifier, table.column_names))
    with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, columns)) as copy:
        copy.write(_SIGNATURE)
        at_once = _BYTES_AT_ONCE * len(table) // max(table.nbytes, 1)
        for batch in table.to_batches(max_chunksize=min(max(at_once, 1), _ROWS_AT_ONCE)):
            copy.write(memoryview(encode_rows(batch)))
        copy.write(_END)


def sql_type(arrow: pa.DataType) -> str:
    """The SQL name of :func:`dare_core.warehouse.tables.column_type`."""
    return tables.column_type(arrow).compile(postgresql.dialect()).lower()  # type: ignore[no-untyped-call]


def encode_rows(batch: pa.RecordBatch) -> pa.Buffer:
    """Rows as binary COPY has them: their number of fields, and each field's length and bytes."""
    fields = _fixed(np.full(len(batch), batch.num_columns, ">i2"))
    return _bytes(_join([fields, *(part for column in batch.columns for part in _field(column))]))


def _field(column: pa.Array) -> list[pa.Array]:
    """Lengths (-1: null), and bytes."""
    values = _values(column)
    if column.null_count:
        values = pc.if_else(column.is_valid(), values, pa.scalar(None, pa.binary()))
    lengths = pc.fill_null(pc.binary_length(values), -1).to_numpy(zero_copy_only=False)
    return [_fixed(lengths.astype(">i4")), values]


def _values(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_string(kind):
        return column.cast(pa.binary())
    if kind in _NUMBERS:
        return _fixed(pc.fill_null(column, 0).to_numpy().astype(_NUMBERS[kind]))
    if kind == TIME:
        return _fixed((pc.fill_null(column.cast(pa.int64()), 0).to_numpy() - _EPOCH_US).astype(">i8"))
    if pa.types.is_boolean(kind):
        return _fixed(pc.fill_null(column, False).to_numpy(zero_copy_only=False).astype(np.uint8))
    if pa.types.is_fixed_size_list(kind):
        return _vectors(column)
    return _arrays(column)


def _vectors(column: pa.FixedSizeListArray) -> pa.Array:
    """pgvector's ``vector``: dimensions, an unused number, and single-precision values."""
    width = column.type.list_size
    rows = np.zeros(len(column), [("width", ">i2"), ("unused", ">i2"), ("values", ">f4", width)])
    rows["width"] = width
    rows["values"] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)
    return _fixed(rows)


def _arrays(column: pa.ListArray) -> pa.Array:
    """One-dimensional arrays: dimensions, whether nulls are there, elements' type, their number, the first index."""
    offsets = column.offsets.to_numpy()
    elements = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    fields = _join(_field(elements))
    starts = np.frombuffer(fields.buffers()[1], np.int32, len(fields) + 1)[offsets - offsets[0]]
    items = pa.Array.from_buffers(pa.binary(), len(column), [None, pa.py_buffer(starts), fields.buffers()[2]])
    header = np.zeros(len(column), [(name, ">i4") for name in ("dimensions", "nulls", "type", "length", "first")])
    header["dimensions"] = header["first"] = 1
    header["nulls"] = int(elements.null_count > 0)
    header["type"] = _ELEMENTS[column.type.value_type]
    header["length"] = np.diff(offsets)
    return _join([_fixed(header), items])


def _fixed(rows: "np.ndarray[Any, Any]") -> pa.Array:
    """Each row's own bytes."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(rows.itemsize)
    return pa.Array.from_buffers(
        pa.binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rows))]
    )


def _join(parts: list[pa.Array]) -> pa.Array:
    return pc.binary_join_element_wise(*parts, b"", null_handling="replace", null_replacement=b"")


def _bytes(joined: pa.Array) -> pa.Buffer:
    values = joined.buffers()[2]
    end: int = np.frombuffer(joined.buffers()[1], np.int32, len(joined) + 1)[-1]
    return values[:end] if values is not None else pa.py_buffer(b"")
