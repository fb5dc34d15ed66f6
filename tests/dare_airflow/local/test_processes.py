import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dare_airflow.local import processes


def test_every_process_of_a_session_ends_even_those_that_ignore_sigterm_or_left_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
apart = subprocess.Popen(["sleep", "600"], start_new_session=True)
grouped = subprocess.Popen(["sleep", "600"], process_group=0)
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{apart.pid}} {{grouped.pid}} ")
time.sleep(600)
"""
    root = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    while not pids.exists() or not pids.read_text().endswith(" "):
        time.sleep(0.05)
    family = processes.family([root])
    assert {process.pid for process in family} >= {int(pid) for pid in pids.read_text().split()}

    processes.signal_all(family, signal.SIGKILL)
    root.wait()
    psutil.wait_procs(family, timeout=10)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)


def test_sigterm_leaves_with_blocks_in_order() -> None:
    left = False
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)), processes.exit_on_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            left = True
    assert left
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
