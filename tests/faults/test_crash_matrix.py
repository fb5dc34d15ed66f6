"""Every fault once, on a small installation: nothing is lost, doubled or left half-written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dare_core.settings import Settings
from dare_core.warehouse.server import serving, start, stop
from tests.faults.crash_matrix import FAULTS, Matrix

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
#: Numbers of tries until a fault has come before its stage was done.
_NUMBERS = range(1, 9)


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


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_the_run_is_repeated_and_equals_an_undisturbed_one(matrix: Matrix, name: str) -> None:
    for number in _NUMBERS:
        tried = matrix.attempt(FAULTS[name], number)
        assert (tried.lost, tried.doubled, tried.half_written) == ({}, {}, [])
        if tried.disturbed:
            return
    pytest.fail("the fault came too late every time")
