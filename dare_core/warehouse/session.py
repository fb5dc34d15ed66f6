"""The warehouse, served and at the current schema, for the length of a stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from dare_core.config.settings import Settings
from dare_core.errors import WarehouseError
from dare_core.warehouse.connection import connected, reason
from dare_core.warehouse.migrate import require_current
from dare_core.warehouse.server import serving


class Warehouse(NamedTuple):
    """A warehouse that is served and at the current schema."""

    url: str
    engine: Engine


@contextmanager
def open_warehouse(settings: Settings) -> Iterator[Warehouse]:
    """The warehouse, until the block ends.

    Raises:
        WarehouseError: it cannot be reached, has another schema version, or was stopped within the block.
    """
    with serving(settings) as url, connected(url) as engine:
        try:
            require_current(engine)
            yield Warehouse(url, engine)
        except (OperationalError, psycopg.OperationalError) as error:
            raise WarehouseError(f"the warehouse broke off; run the same again: {reason(error)}") from error
