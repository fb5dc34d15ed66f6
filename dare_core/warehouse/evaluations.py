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


def newest_evaluation(
    engine: Engine, domain: str, seeds: int, entities: int, figure: str, model: str | None = None
) -> dict[str, Any] | None:
    """A domain's newest row of EVALUATION that counts.

    Args:
        engine: the warehouse.
        domain: whose.
        seeds, entities: of at least so many.
        figure: a column that the row must have a value of.
        model: of this language model alone; None: of any.

    Returns:
        None where there is none.
    """
    rows = EVALUATION.c
    counts = [rows.domain == domain, rows.seeds >= seeds, rows.entities >= entities, rows[figure].is_not(None)]
    if model is not None:
        counts.append(rows.model == model)
    query = select(EVALUATION).where(*counts).order_by(rows.evaluated_at.desc()).limit(1)
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
        return dict(row) if row else None
