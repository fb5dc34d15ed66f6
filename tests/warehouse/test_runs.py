"""Records of runs, on a real database."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine

from dare_core.errors import WarehouseError
from dare_core.warehouse.runs import record_run


def test_a_run_is_recorded_column_by_column(engine: Engine) -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    planned = {
        "domain": "movies",
        "state": "planned",
        "params": '{"top_k": 2}',
        "model": "m",
        "started_at": began,
        "planned": 5,
    }
    record_run(engine, "run-1", **planned)
    record_run(engine, "run-1", **planned)
    record_run(engine, "run-1", state="loaded", loaded=4)
    with engine.connect() as connection:
        query = "SELECT state, planned, loaded, params ->> 'top_k' FROM knowledge.generation_run"
        assert connection.exec_driver_sql(query).one() == ("loaded", 5, 4, "2")
    with pytest.raises(WarehouseError, match="run-2 cannot be recorded"):
        record_run(engine, "run-2", state="loaded")
    with pytest.raises(WarehouseError, match="generation_run_state"):
        record_run(engine, "run-1", state="dancing")
