"""``dare pool build`` and ``add``: a Parquet file of knowledge in, a pool version out."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dare_core.errors import InputError
from dare_core.schemas import POOL_KNOWLEDGE, POOL_TEXT


def read_knowledge(path: Path) -> pa.Table:
    """The columns ``group`` and ``token_ids`` of a Parquet file, ``entity_id`` and ``available_at`` where it has them.

    Others are ignored. Without ``entity_id`` no text can be forgotten, and adding a text again counts it again.

    Raises:
        InputError: the file is missing, no Parquet, has no rows, or lacks a column, or a column has nulls or another
        type.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
        names = table.column_names
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
    if missing := [name for name in POOL_TEXT.names if name not in names]:
        raise InputError(f"{path}: column {missing[0]!r} is missing; there are: {', '.join(names)}")
    optional = [
        field for field in POOL_KNOWLEDGE if field.name in table.column_names and field.name not in POOL_TEXT.names
    ]
    schema = pa.schema([*POOL_TEXT, *(field.with_nullable(True) for field in optional)])
    table = table.select(schema.names)
    if not len(table):
        raise InputError(f"{path}: holds no rows")
    for field in POOL_TEXT:
        column = table[field.name]
        flat = (
            column.combine_chunks().flatten() if field.name == "token_ids" and pa.types.is_list(column.type) else column
        )
        if column.null_count or flat.null_count:
            raise InputError(f"{path}: column {field.name!r} holds nulls")
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
