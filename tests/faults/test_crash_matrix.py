"""Faults of every kind once, on a small installation: nothing is lost, doubled or left half-written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dare_core.config.settings import Settings
from dare_core.warehouse.connection import connect
from dare_core.warehouse.server import serving, start, stop
from tests.faults.crash_matrix import END, FAULTS, Matrix
from tests.faults.stages import RUN
from tests.support.inventory import compare

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
#: Numbers of tries until a fault has come before its stage was done.
_NUMBERS = range(1, 9)
#: Left to `make faults-full`, so that this takes less than five minutes: Spark's stages, and what many have alike.
_LONG = ("pull", "group")
_ALIKE = ("disk:plan", "database:generate", "database:publish", "clock:forward")
_QUICK = [name for name, fault in FAULTS.items() if fault.stage not in _LONG and name not in _ALIKE]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    work: Path = tmp_path_factory.mktemp("faults")
    server = Settings(data_dir=work / "server", warehouse_url=None)
    with serving(server):
        try:
            matrix = Matrix(work, server, start(server))
            matrix.prepare()
            yield matrix
        finally:
            stop(server)


def test_what_is_lost_doubled_or_torn_is_noticed(matrix: Matrix) -> None:
    matrix.installation.put_back(END)
    assert not compare(matrix.reference, matrix.inventory())
    assert matrix.unfinished() == []
    engine = connect(matrix.installation.database)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "DELETE FROM knowledge.knowledge WHERE request_id = (SELECT max(request_id) FROM knowledge.knowledge)"
        )
        connection.exec_driver_sql(
            "INSERT INTO knowledge.watermark VALUES ('other', 'item', now());"
            "UPDATE knowledge.generation_run SET state = 'planned'"
        )
    engine.dispose()
    settings = matrix.installation.settings()
    part = min((settings.run_dir(RUN.run_id) / "staged").glob("*/part-*.parquet"))
    part.unlink()
    difference = compare(matrix.reference, matrix.inventory())
    assert difference.lost["warehouse.knowledge"] == difference.lost["warehouse.knowledge_embedding"] == 1
    assert difference.lost["staged.texts"] >= 1
    assert difference.doubled == {"warehouse.watermark": 1}
    assert difference.changed == {"warehouse.generation_run": 2}
    assert any("has a manifest, but lacks" in problem for problem in matrix.unfinished())


@pytest.mark.parametrize("name", _QUICK)
def test_after_a_fault_the_run_is_repeated_and_equals_an_undisturbed_one(matrix: Matrix, name: str) -> None:
    for number in _NUMBERS:
        tried = matrix.attempt(FAULTS[name], number)
        assert (tried.lost, tried.doubled, tried.half_written) == ({}, {}, [])
        if tried.disturbed:
            return
    pytest.fail("the fault came too late every time")
