"""How many threads this process may keep busy: the cores that it may use, less those that others are using."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: Seconds between two looks at what the machine does.
_INTERVAL: Final = 1.0
#: Turns of a waiting loop after which a thread of GNU's OpenMP sleeps; its own default is 300,000, milliseconds.
_SPINS: Final = "5000"
#: The variables that :func:`give_way` found unset.
_ours: Final = set[str]()


def give_way(environment: Callable[[str, str], object] = os.environ.setdefault) -> None:
    """Have OpenMP's waiting threads, torch's and oneDNN's, sleep after microseconds; to be called before torch loads.

    Args:
        environment: sets a variable unless the user has.
    """
    _ours.update({"GOMP_SPINCOUNT", "KMP_BLOCKTIME"} - os.environ.keys())
    if "OMP_WAIT_POLICY" not in os.environ:
        environment("GOMP_SPINCOUNT", _SPINS)
    environment("KMP_BLOCKTIME", "0")


def users_environment() -> dict[str, str]:
    """The environment without what :func:`give_way` put there: for programs that are measured beside ours."""
    return {name: value for name, value in os.environ.items() if name not in _ours}


def processors() -> int:
    """Threads that can run at once: processors that the system lets this process have, within its cgroup's quota.

    ``OMP_NUM_THREADS`` sets a lower limit of the user's own.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    most = int(limit) if limit.isdigit() and int(limit) else math.inf
    return max(1, math.ceil(min(len(_allowed()), _quota(), most)))


class Threads:
    """How many threads should work now.

    A machine's idle processors, and one of those that others use: then a busy process and ours share it.

    Args:
        set_count: told the number, at once and whenever it changes.

    Attributes:
        count: the number.
    """

    def __init__(self, set_count: Callable[[int], object] = lambda count: None) -> None:
        self._set = set_count
        self._seen, self._busy, self._own = time.monotonic(), _busy_seconds(), time.process_time()
        self.count = processors()
        set_count(self.count)

    def follow(self) -> None:
        """Look at the machine, at most once a second, and change the number where it is another one now."""
        now = time.monotonic()
        if (passed := now - self._seen) < _INTERVAL:
            return
        busy, own = _busy_seconds(), time.process_time()
        others = max(0.0, busy - self._busy - (own - self._own)) / passed
        self._seen, self._busy, self._own = now, busy, own
        count = max(1, min(processors(), len(_allowed()) - round(others) + 1))
        if count != self.count:
            self.count = count
            self._set(count)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have torch's operators run on ``count`` threads meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """Processors' worth of time that the process's cgroups grant it, of version 1 or 2; infinite without a limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        # In a container the group may be mounted as the root, whatever its path outside.
        for folder in {top, root / "cpu" if controllers else root, *_upwards(top, path)}:
            quotas.append(_granted(folder))
    return min(quotas)


def _upwards(top: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [top.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]


def _granted(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    return int(quota) / int(period) if quota.strip() != "max" and int(quota) > 0 else math.inf


def _busy_seconds(stat: Path = Path("/proc/stat")) -> float:
    """Seconds that the processors at hand were busy since the system started; 0 where it does not say."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0.0
    wanted = {f"cpu{number}" for number in _allowed()}
    ticks = 0
    for line in lines:
        name, *columns = line.split()
        if name in wanted:
            user, nice, system, _, _, interrupts, soft, stolen = map(int, columns[:8])
            ticks += user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
