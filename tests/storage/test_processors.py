"""How many threads: within affinity and quota, fewer where others are busy, and more again when they have gone."""

import os
from pathlib import Path

import pytest

from dare_core.storage import processors as module
from dare_core.storage.processors import Threads, _busy_seconds, _quota, give_way, processors, users_environment


class Machine:
    """Eight processors, of which others keep some busy, and this process as many as it has threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, quota: float = float("inf")) -> None:
        self.others, self.told = 0.0, list[int]()
        self._now = self._busy = self._own = 0.0
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(module, "_allowed", lambda: set(range(8)))
        monkeypatch.setattr(module, "_quota", lambda: quota)
        monkeypatch.setattr(module, "_busy_seconds", lambda: self._busy)
        monkeypatch.setattr(module.time, "process_time", lambda: self._own)
        monkeypatch.setattr(module.time, "monotonic", lambda: self._now)
        self.threads = Threads(self.told.append)

    def run(self, seconds: float) -> int:
        own = min(self.threads.count, 8 - self.others)
        self._now += seconds
        self._own += seconds * own
        self._busy += seconds * (own + self.others)
        self.threads.follow()
        return self.threads.count


def test_alone_all_processors_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    assert [machine.run(1) for _ in range(3)] == [8, 8, 8]
    assert machine.told == [8]


def test_threads_give_way_to_others_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.others = 3.0
    assert machine.run(1) == 6  # five are idle, and one is shared
    machine.others = 20.0
    machine.run(1)
    assert machine.run(1) == 1
    machine.others = 0.0
    assert machine.run(1) == 8
    assert machine.told == [8, 6, 1, 8]


def test_the_machine_is_looked_at_once_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.others = 5.0
    assert machine.run(0.5) == 8
    assert machine.run(0.6) == 4


def test_a_quota_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, quota=2.5)
    assert machine.run(1) == 3
    machine.others = 4.0  # there is room beside them
    assert machine.run(1) == 3


def test_the_users_own_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert processors() == 1


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000"}, "0::/", float("inf")),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000"}, "0::/a/b", 0.5),
        ({"cpu.max": "200000 100000"}, "0::/outside/the/container", 2.0),
        (
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/job\n3:memory:/job",
            3.0,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", float("inf")),
        ({}, "0::/", float("inf")),
    ],
)
def test_quotas_of_both_versions_of_cgroups_are_read(
    tmp_path: Path, files: dict[str, str], membership: str, expected: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    assert _quota(tmp_path, tmp_path / "membership") == expected


def test_time_that_the_allowed_processors_were_busy_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    lines = ["cpu 9 9 9 9 9 9 9 9", f"cpu0 {tick} {tick} {tick} 99 99 0 0 {tick} 0 0", f"cpu1 {tick} 0 0 0 0 0 0 0 0 0"]
    (tmp_path / "stat").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(module, "_allowed", lambda: {0})
    assert _busy_seconds(tmp_path / "stat") == 4.0


def test_openmps_threads_are_told_to_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    said: dict[str, str] = {"KMP_BLOCKTIME": "7"}
    give_way(said.setdefault)
    assert int(said["GOMP_SPINCOUNT"]) < 300_000
    assert said["KMP_BLOCKTIME"] == "7"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    said = {}
    give_way(said.setdefault)
    assert "GOMP_SPINCOUNT" not in said


def test_programs_measured_beside_ours_wait_as_the_user_has_them_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    monkeypatch.setattr(module, "_ours", set())
    give_way()
    assert "GOMP_SPINCOUNT" not in users_environment()
    assert users_environment()["KMP_BLOCKTIME"] == "7"
