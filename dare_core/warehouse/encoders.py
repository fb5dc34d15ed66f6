"""Encoders (table ``encoder``): whose vectors the warehouse has, and which of them are served.

To change the encoder, or the width of vectors: :func:`add` it, fill in its vectors of every text, :func:`switch` to it,
:func:`drop` the old one. Meanwhile runs embed with both, and the old one's vectors are served until the switch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from sqlalchemy import Engine, select

from dare_core.errors import InputError, SettingError, WarehouseError
from dare_core.warehouse.connection import transaction
from dare_core.warehouse.tables import ENCODER

_WIDEST: Final = 4000


@dataclass(frozen=True)
class StoredEncoder:
    """An encoder whose vectors are kept.

    Attributes:
        name: what the settings call it.
        width: dimensions of its vectors.
        in_force: its vectors are what views and functions serve.
    """

    name: str
    width: int
    in_force: bool


def stored(engine: Engine) -> list[StoredEncoder]:
    """The one in force first; none before the first load."""
    query = select(ENCODER.c.name, ENCODER.c.width, ENCODER.c.in_force).order_by(ENCODER.c.in_force.desc(), "name")
    with engine.connect() as connection:
        return [StoredEncoder(*row) for row in connection.execute(query)]


def to_embed_with(engine: Engine, wanted: str) -> list[str]:
    """The encoders that new texts need vectors of: all that are kept, or, before the first load, the one wanted.

    Raises:
        SettingError: others are kept than the one wanted.
    """
    names = [encoder.name for encoder in stored(engine)] or [wanted]
    if wanted not in names:
        raise SettingError(
            f"setting encoder (DARE_ENCODER) is {wanted!r}, and the warehouse has vectors of {', '.join(names)}; "
            f"run `dare warehouse add-encoder {wanted}`, then `dare warehouse switch-encoder {wanted}`, or set it back"
        )
    return names


def admit(cursor: psycopg.Cursor[Any], widths: Mapping[str, int]) -> None:
    """Refuse vectors of strangers; where there is no encoder yet, the first is put in force.

    Args:
        cursor: in a transaction.
        widths: of the vectors, by their encoder.

    Raises:
        InputError: vectors are of an encoder that the warehouse does not have, or of another width than its own.
    """
    cursor.execute("SELECT name, width FROM knowledge.encoder")
    known = dict(cursor.fetchall())
    for name, width in widths.items():
        if not known:
            cursor.execute("INSERT INTO knowledge.encoder VALUES (%s, %s, true, 1)", [name, width])
            known = {name: width}
        if name not in known:
            raise InputError(
                f"the vectors are of encoder {name!r}, and the warehouse has {', '.join(sorted(known))}; "
                f"run `dare warehouse add-encoder` first"
            )
        if known[name] != width:
            raise InputError(f"the embeddings have {width} dimensions, and those of {name!r} have {known[name]}")


def add(engine: Engine, name: str, width: int) -> None:
    """Make room for an encoder's vectors; it is not served before the :func:`switch`, unless it is the first.

    Raises:
        WarehouseError: it is there with another width, or its width is not allowed.
    """
    if width > _WIDEST:
        raise WarehouseError(f"vectors of width {width} cannot be indexed; pgvector's HNSW takes {_WIDEST} dimensions")
    with transaction(engine) as cursor:
        cursor.execute("LOCK TABLE knowledge.encoder IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute(
            """
            INSERT INTO knowledge.encoder (name, width, in_force, number)
            SELECT %s, %s, count(*) = 0, coalesce(max(number), 0) + 1 FROM knowledge.encoder
            ON CONFLICT (name) DO NOTHING
            """,
            [name, width],
        )
        cursor.execute("SELECT width FROM knowledge.encoder WHERE name = %s", [name])
        if cursor.fetchone() != (width,):
            raise WarehouseError(f"the warehouse has vectors of {name} in another width than {width}")
        cursor.execute("SELECT knowledge.add_domain(domain) FROM (SELECT DISTINCT domain FROM knowledge.knowledge)")


def switch(engine: Engine, name: str) -> None:
    """Serve an encoder's vectors from now on, in one transaction.

    Raises:
        WarehouseError: it is not there, or a text has no vector of it.
    """
    _require(engine, name)
    with transaction(engine) as cursor:
        # No load in between: it might bring texts without the vector.
        cursor.execute("LOCK TABLE knowledge.knowledge, knowledge.encoder IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute(
            """
            SELECT count(*) FROM knowledge.knowledge AS k WHERE NOT EXISTS (
                SELECT FROM knowledge.knowledge_embedding AS e
                WHERE (e.request_id, e.domain, e.encoder) = (k.request_id, k.domain, %s)
            )
            """,
            [name],
        )
        [missing] = cursor.fetchone() or (0,)
        if missing:
            raise WarehouseError(
                f"{missing} texts have no vector of {name}; run `dare warehouse add-encoder {name}` again"
            )
        cursor.execute("UPDATE knowledge.encoder SET in_force = false WHERE in_force AND name <> %s", [name])
        cursor.execute("UPDATE knowledge.encoder SET in_force = true WHERE name = %s", [name])


def drop(engine: Engine, name: str) -> None:
    """Remove an encoder and its vectors.

    Raises:
        WarehouseError: it is not there, or in force.
    """
    if _require(engine, name).in_force:
        raise WarehouseError(f"{name} is in force; `dare warehouse switch-encoder` to another one first")
    with transaction(engine) as cursor:
        cursor.execute("SELECT name FROM knowledge.vector_partition WHERE encoder = %s", [name])
        for [partition] in cursor.fetchall():
            cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier("partitions", partition)))
        cursor.execute("DELETE FROM knowledge.encoder WHERE name = %s", [name])


def _require(engine: Engine, name: str) -> StoredEncoder:
    known = {encoder.name: encoder for encoder in stored(engine)}
    if name not in known:
        raise WarehouseError(f"the warehouse has no vectors of {name}; it has those of {', '.join(known) or 'none'}")
    return known[name]
