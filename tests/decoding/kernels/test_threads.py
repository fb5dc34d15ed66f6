"""Threads that are not scheduled, and processes that fork: answers stay the same, and nobody waits for ever."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from torch import nn

from dare_core.decoding import kernels
from dare_core.decoding.weights import PanelLinear
from dare_core.storage.processors import processors

pytestmark = pytest.mark.skipif(kernels.load() is None, reason="no C++ compiler")

#: A layer, and its answer by one thread.
WORK = """
import os, signal, sys, threading, time
import torch
from dare_core.decoding import kernels
from dare_core.decoding.weights import PanelLinear

torch.manual_seed(0)
layer = PanelLinear([torch.nn.Linear(256, 4096)], "model")
rows = torch.randn(5, 256)
kernels.set_threads(1)
expected = layer(rows).clone()
kernels.set_threads(THREADS)
"""


def run(code: str, threads: int = 6, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    program = WORK.replace("THREADS", str(threads)) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("rows", [1, 13, 300])
def test_a_layer_answers_the_same_by_any_number_of_threads(threads: int, rows: int) -> None:
    torch.manual_seed(1)
    layer = PanelLinear([nn.Linear(100, 700)], "model")
    hidden = torch.randn(rows, 100)
    try:
        kernels.set_threads(1)
        expected = layer(hidden).clone()
        kernels.set_threads(threads)
        for _ in range(200):
            assert torch.equal(layer(hidden), expected)
    finally:
        kernels.set_threads(processors())


def test_more_threads_than_processors_disturb_no_answer() -> None:
    done = run(
        """
        for _ in range(3000):
            assert torch.equal(layer(rows), expected)
        """
    )
    assert done.returncode == 0, done.stderr


def test_nobody_waits_for_helpers_that_are_not_scheduled() -> None:
    done = run(
        """
        ids = set(os.listdir("/proc/self/task"))
        layer(rows)
        helpers = [int(task) for task in set(os.listdir("/proc/self/task")) - ids]
        assert helpers
        for task in helpers:  # the lowest of all priorities, beside threads that leave no processor idle
            os.sched_setscheduler(task, os.SCHED_IDLE, os.sched_param(0))
        import multiprocessing
        spin = [multiprocessing.Process(target=exec, args=("while True: pass",), daemon=True) for _ in range(4)]
        [one.start() for one in spin]
        began = time.monotonic()
        for _ in range(100):
            assert torch.equal(layer(rows), expected)
        print(time.monotonic() - began)
        [one.kill() for one in spin]
        """,
        threads=2,
    )
    assert done.returncode == 0, done.stderr
    # Each call waiting for a helper's turn, a second or so at that priority, would take minutes.
    assert float(done.stdout) < 60


def test_a_fork_has_threads_of_its_own() -> None:
    done = run(
        """
        layer(rows)
        child = os.fork()
        if not child:
            os._exit(0 if torch.equal(layer(rows), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(layer(rows), expected)
        """
    )
    assert done.returncode == 0, done.stderr


def test_several_threads_of_python_may_call_at_once() -> None:
    torch.manual_seed(1)
    layers = [PanelLinear([nn.Linear(100, 900)], "model") for _ in range(4)]
    hidden = torch.randn(7, 100)
    expected = [layer(hidden).clone() for layer in layers]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(300):
            if not torch.equal(layers[i](hidden), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_waiting_threads_sleep() -> None:
    """An idle process takes no processor's time, unless it is told to wait actively."""
    code = """
        layer(rows)
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(1)
        print(time.process_time() - before)
        """
    assert float(run(code, threads=2).stdout) < 0.05
    assert float(run(code, threads=2, DARE_THREAD_SPIN="active").stdout) > 0.2


def test_a_wrong_number_of_microseconds_is_refused() -> None:
    refused = run("", DARE_THREAD_SPIN="soon")
    assert "DARE_THREAD_SPIN is 'soon'; set it to microseconds, 0 or more, or to `active`" in refused.stderr


def test_it_ends_at_once_while_helpers_sleep() -> None:
    done = run("layer(rows); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", timeout=30)
    assert done.returncode == -signal.SIGTERM
