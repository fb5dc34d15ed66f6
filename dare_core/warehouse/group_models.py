"""Group models (table ``group_model``): which version is in force."""

from datetime import UTC, datetime

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from dare_core.errors import WarehouseError
from dare_core.schemas import Kind
from dare_core.warehouse.connection import reason
from dare_core.warehouse.tables import GROUP_MODEL


class WarehousePointer:
    """A :class:`dare_core.grouping.model.Pointer` to the group model of one kind of entity in one domain.

    Args:
        engine: the warehouse.
        domain: the domain's name.
        kind: of entity.
        location: root of the pool store that the group models lie beside.
    """

    def __init__(self, engine: Engine, domain: str, kind: Kind, location: str) -> None:
        self._engine = engine
        self._key = {"domain": domain, "kind": kind}
        self._location = location

    def read(self) -> str | None:
        """The version in force; None before the first.

        Raises:
            WarehouseError: the warehouse lacks the table.
        """
        query = select(GROUP_MODEL.c.version).filter_by(**self._key)
        try:
            with self._engine.connect() as connection:
                version: str | None = connection.execute(query).scalar_one_or_none()
                return version
        except DBAPIError as error:
            raise WarehouseError(
                f"the group model in force cannot be read: {reason(error)}; `dare warehouse upgrade` brings the "
                "schema up to date"
            ) from error

    def move(self, version: str) -> None:
        """Put a version in force.

        Raises:
            WarehouseError: the row cannot be written.
        """
        facts = {"version": version, "location": self._location, "published_at": datetime.now(UTC)}
        moved = upsert(GROUP_MODEL).values(**self._key, **facts)
        try:
            with self._engine.begin() as connection:
                connection.execute(moved.on_conflict_do_update(index_elements=["domain", "kind"], set_=facts))
        except DBAPIError as error:
            raise WarehouseError(
                f"group model {version} cannot be published: {reason(error)}; the one in force stays"
            ) from error
