"""Our engine on a machine that others use too: beside a busy process, beside another engine, and what waiting costs."""

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.decode_prompts import OnProgress
from bench.disturbance import disturbing
from bench.engine_process import EngineProcess, engine_process
from dare_core.config.settings import Settings
from dare_core.pools import Pool

if TYPE_CHECKING:
    from dare_core.decoding import Request

_CONTENDER: Final = "fp32_relaxed"
#: Microseconds that a waiting thread of the engine spins before it sleeps; so set it never sleeps.
_WAITING: Final = "DARE_THREAD_SPIN"
_ACTIVE: Final = "active"


@dataclass(frozen=True)
class SharedMachine:
    """Measures tokens per second of one engine process and of two, in turn.

    Attributes:
        settings: the model, and how it is drafted and verified.
        pool: what is drafted from.
        requests: what every process writes.
        batch_size: sequences at once.
        on_progress: told what is measured.
    """

    settings: Settings
    pool: Pool
    requests: "Sequence[Request]"
    batch_size: int
    on_progress: OnProgress

    def measure(self) -> dict[str, float]:
        """One run of each: ``alone``, ``spin``, ``stream``, ``two_engines`` (their sum), ``actively_waiting``."""
        speeds = {}
        with self._engine() as first:
            self.on_progress("one engine alone")
            speeds["alone"] = first.write(self.requests).tokens_per_second
            for kind in ("spin", "stream"):
                self.on_progress(f"one engine beside a process that {kind}s")
                with disturbing(kind):
                    speeds[kind] = first.write(self.requests).tokens_per_second
            with self._engine("second") as second, ThreadPoolExecutor(2) as askers:
                self.on_progress("two engines at once")
                runs = askers.map(lambda engine: engine.write(self.requests), (first, second))
                speeds["two_engines"] = sum(run.tokens_per_second for run in runs)
        with self._engine("active", {_WAITING: _ACTIVE}) as active:
            self.on_progress("one engine whose waiting threads never sleep")
            speeds["actively_waiting"] = active.write(self.requests).tokens_per_second
        return speeds

    def _engine(
        self, name: str = "first", variables: Mapping[str, str] | None = None
    ) -> AbstractContextManager[EngineProcess]:
        log = self.settings.data_dir / "bench" / f"engine-{name}.log"
        return engine_process(self.settings, self.pool, _CONTENDER, self.batch_size, self.requests, log, variables)


def shared_ratios(measured: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """The figures that the project holds itself to, of medians; None where nothing was measured."""
    if not measured:
        return dict.fromkeys(("busy_ratio", "two_engines_ratio", "idle_cost"))
    median = {name: statistics.median(speeds[name] for speeds in measured) for name in measured[0]}
    alone = median["alone"]
    return {
        "busy_ratio": round(min(median["spin"], median["stream"]) / alone, 3),
        "two_engines_ratio": round(median["two_engines"] / alone, 3),
        "idle_cost": round(alone / median["actively_waiting"], 3),
    }
