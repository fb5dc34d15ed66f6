"""Neighbours that keep a core or the memory busy, and end."""

import os
from pathlib import Path

import pytest

from bench.disturbance import Kind, disturbing
from bench.machine import machine


@pytest.mark.parametrize("kind", ["spin", "stream"])
def test_a_disturbance_is_at_it_within_the_block_and_gone_behind_it(kind: Kind) -> None:
    with disturbing(kind) as process:
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_disturbance_ends_though_the_block_fails() -> None:
    with pytest.raises(ValueError, match="failed"), disturbing("spin") as process:
        raise ValueError("failed")
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_the_processor_and_what_it_can_are_named(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: A Processor\nflags\t: fpu avx2 avx512_vnni\nmodel name\t: other\n")
    facts = machine(tmp_path / "cpuinfo")
    assert (facts["processor"], facts["instruction_sets"]) == ("A Processor", ["avx2", "avx512_vnni"])
    assert machine(tmp_path / "none")["instruction_sets"] == []
