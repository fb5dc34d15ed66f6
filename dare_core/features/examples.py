"""A domain's interactions as examples to train on, with how alike their item is to what the user had liked before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Engine

from dare_core.features.join import microseconds
from dare_core.features.likeness import TIERS
from dare_core.features.likes import ItemLikeness
from dare_core.storage.atomic import appearing
from dare_core.warehouse.interactions import INTERACTION, stream_interactions

#: Columns of ``item.parquet`` that no likeness is made of.
_UNREAD: Final = ("text", "group_name")

#: Columns of ``likeness.parquet``: an interaction, ``label`` 1 for a like, and what ``features.likeness`` gives at its
#: moment. ``histogram`` counts likes by tenth of likeness.
EXAMPLE: Final = pa.schema(
    [
        *INTERACTION,
        pa.field("likes", pa.int32(), nullable=False),
        pa.field("mean", pa.float32()),
        pa.field("max", pa.float32()),
        pa.field("leaning", pa.float32(), nullable=False),
        pa.field("histogram", pa.list_(pa.field("element", pa.int32(), nullable=False), TIERS), nullable=False),
    ]
)


def export_likeness(engine: Engine, domain: str, out: Path) -> int:
    """Write ``likeness.parquet`` of schema EXAMPLE, whole or not at all, in the order of user and time.

    Memory holds the items' vectors, one batch, and one user.

    Args:
        engine: the warehouse.
        domain: whose interactions it knows.
        out: the folder with the ``item.parquet`` that :func:`dare_core.features.history.export_features` wrote.

    Returns:
        Rows.

    Raises:
        SourceError: the interactions are not in the warehouse's database, or cannot be read there; says what to do.
    """
    with pq.ParquetFile(out / "item.parquet") as items:
        names = [name for name in items.schema_arrow.names if name not in _UNREAD]
        compared = ItemLikeness(items.read(columns=names))
    rows = 0
    with (
        appearing(out / "likeness.parquet") as scratch,
        pq.ParquetWriter(scratch, EXAMPLE, compression="zstd") as writer,
    ):
        for interactions in _whole_users(stream_interactions(engine, domain)):
            writer.write_table(_examples(compared, interactions))
            rows += len(interactions)
    return rows


def _whole_users(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of all interactions of some users each, of batches in the order of users."""
    left = INTERACTION.empty_table()
    for batch in batches:
        left = pa.concat_tables([left, pa.Table.from_batches([batch])])
        last = left["user_id"][-1]
        if (begin := pc.index(left["user_id"], last).as_py()) > 0:
            yield left.slice(0, begin)
            left = left.slice(begin)
    if len(left):
        yield left


def _examples(compared: ItemLikeness, interactions: pa.Table) -> pa.Table:
    moments = microseconds(interactions["event_timestamp"], 0)
    liked = interactions["label"].to_numpy() > 0
    found = compared.before(interactions["user_id"], interactions["item_id"], moments, liked)
    none = found[:, 0] == 0
    columns = [
        pa.array(found[:, 0].astype(np.int32)),
        pa.array(found[:, 1], mask=none),
        pa.array(found[:, 2], mask=none),
        pa.array(found[:, 3]),
        pa.FixedSizeListArray.from_arrays(
            pa.array(found[:, 4:].astype(np.int32).ravel()), type=EXAMPLE.field("histogram").type
        ),
    ]
    return pa.table([*interactions.columns, *columns], schema=EXAMPLE)
