"""Evaluations (table ``evaluation``): what comparing a domain's modes measured."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import DBAPIError

from dare_core.errors import WarehouseError
from dare_core.warehouse.connection import reason
from dare_core.warehouse.tables import EVALUATION


def record_evaluation(engine: Engine, row: Mapping[str, object]) -> None:
    """Store a row of EVALUATION, whose ``result`` is a dictionary.

    Raises:
        WarehouseError: the warehouse has no such table, or the domain was evaluated at the same moment before.
    """
    try:
        with engine.begin() as connection:
            connection.execute(insert(EVALUATION), [dict(row)])
    except DBAPIError as error:
        raise WarehouseError(f"the evaluation of {row['domain']} cannot be recorded: {reason(error)}") from error


def newest_evaluation(engine: Engine, domain: str, seeds: int, entities: int) -> dict[str, Any] | None:
    """A domain's newest row of EVALUATION among those of so many seeds and entities at least; None: there is none."""
    large = (EVALUATION.c.domain == domain, EVALUATION.c.seeds >= seeds, EVALUATION.c.entities >= entities)
    query = select(EVALUATION).where(*large).order_by(EVALUATION.c.evaluated_at.desc()).limit(1)
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
        return dict(row) if row else None
