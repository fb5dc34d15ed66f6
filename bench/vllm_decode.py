"""``dare bench decode --engine vllm``: vLLM with our pools beside vLLM without, plainly and with n-gram speculation.

Our own engine takes part too, with the same pool.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bench.decode import is_tie
from bench.decode_prompts import OnProgress, Plan, movie_requests, strict_pool
from bench.vllm_client import Speculation, serving_vllm
from dare_core import models
from dare_core.config.settings import Settings
from dare_core.engines.plain import Run
from dare_core.pools import Pool

if TYPE_CHECKING:
    from dare_core.decoding import EngineConfig, Request, TextEngine
    from dare_core.engines.vllm.client import VllmEngine, VllmServer

#: vLLM without us.
_PEERS: Final[dict[str, Speculation]] = {"vllm": "none", "vllm_ngram": "ngram"}
_MODES: Final = ("strict", "relaxed")
#: Sequences from which on we are compared with the better of the peers.
_BUSY: Final = 16


def bench_vllm(settings: Settings, plan: Plan, on_progress: OnProgress = lambda what: None) -> dict[str, Any]:
    """Measure tokens per second on the prompts and the pool of :func:`bench.decode.bench_decode`.

    Raises:
        ProgramMissingError, ModelError: vLLM is not installed, or does not start.
    """
    started = time.monotonic()
    asked, others = movie_requests(settings, plan)
    pool, _ = strict_pool(settings, plan, others, on_progress)
    with ExitStack() as running:
        bench = _Bench(settings, plan, asked, pool, running, on_progress)
        runs: dict[str, list[Run]] = {name: [] for name in bench.contenders}
        for repeat in range(plan.repeats):
            begun = time.monotonic()
            for name in bench.contenders if repeat % 2 == 0 else reversed(bench.contenders):
                on_progress(f"{name}, run {repeat + 1} of {plan.repeats}")
                runs[name].append(bench.contenders[name]())
            now = time.monotonic()
            if repeat + 1 < plan.repeats and now - started + (now - begun) > 60 * plan.minutes:
                on_progress(f"no time for more than {repeat + 1} of {plan.repeats} runs in {plan.minutes:g} minutes")
                break
    speeds = {name: statistics.median(run.tokens_per_second for run in made) for name, made in runs.items()}
    return {
        **ratios(speeds, plan.batch_sizes),
        **_fidelity(settings, asked, runs, plan.batch_sizes),
        "tokens_per_second": {name: round(speed, 2) for name, speed in speeds.items()},
        "runs": {name: [round(run.tokens_per_second, 2) for run in made] for name, made in runs.items()},
        **bench.figures,
        **asdict(plan),
        "pool_texts": pool.manifest.texts,
        "model": settings.model,
        "vllm_version": bench.version,
    }


class _Bench:
    """vLLM, started three times, and what its runs left to be reported.

    Attributes:
        contenders: by name, which ends with the batch size.
        figures: of our contenders, of each its last run.
        version: of vLLM.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        asked: "list[Request]",
        pool: Pool,
        running: ExitStack,
        on_progress: OnProgress,
    ) -> None:
        from dare_core.engines.own import OwnEngines
        from dare_core.engines.vllm.client import VllmServer
        from dare_core.engines.vllm.options import vllm_options

        self._settings, self._asked, self._pool = settings, asked, pool
        longest = max(len(request.prompt_token_ids) for request in asked) + plan.max_new_tokens
        most = max(plan.batch_sizes)
        facts = models.model_facts(settings)
        self._ends, self._longest = facts.eos_token_ids, longest
        self.contenders: dict[str, Callable[[], Run]] = {}
        self.figures: dict[str, Any] = {"tokens_per_step": {}, "drafted_per_step": {}, "relaxed_token_rate": {}}
        peers = {}
        for name, speculation in _PEERS.items():
            on_progress(f"starting {name}")
            log = settings.data_dir / "bench" / f"{name}.log"
            serving = serving_vllm(settings, settings.dtype, longest, most, log, speculation)
            peers[name] = running.enter_context(serving)
        on_progress("starting vLLM with our pools")
        sized = settings.model_copy(update={"batch_size": most})
        server = VllmServer(vllm_options(sized, longest, facts.context_length))
        running.callback(server.close)
        self.version = server.version
        self.figures["step_ms_by_sequences_and_drafted"] = {
            sequences: {drafted: round(1e3 * seconds, 2) for drafted, seconds in of_these.items()}
            for sequences, of_these in server.step_seconds.items()
        }
        engines: dict[str, Callable[[EngineConfig], TextEngine]] = {
            "vllm_dare": partial(self._over, server),
            "engine": partial(OwnEngines(settings).open, pool=pool),
        }
        for size in plan.batch_sizes:
            mine = asked[: plan.prompts_at(size)]
            prompts = [request.prompt_token_ids for request in mine]
            for name, peer in peers.items():
                self.contenders[f"{name}_b{size}"] = partial(peer.write, prompts, plan.max_new_tokens, size)
            for mode in _MODES:
                for name, open_engine in engines.items():
                    contender = f"{name}_{mode}_b{size}"
                    self.contenders[contender] = partial(self._write, contender, open_engine, mode, size, mine)

    def _over(self, server: "VllmServer", config: "EngineConfig") -> "VllmEngine":
        from dare_core.engines.vllm.client import VllmEngine

        return VllmEngine(server, self._pool, config, {"learned_tokens": self._settings.learned_tokens})

    def _write(
        self,
        name: str,
        open_engine: "Callable[[EngineConfig], TextEngine]",
        mode: str,
        size: int,
        requests: "Sequence[Request]",
    ) -> Run:
        from dare_core.decoding import EngineConfig, Rule

        settings = self._settings
        rule = Rule("relaxed" if mode == "relaxed" else "strict", settings.top_k, settings.min_prob)
        config = EngineConfig(
            max_sequences=size,
            max_length=self._longest,
            rule=rule,
            eos_token_ids=self._ends,
            draft_nodes=settings.draft_nodes,
            budget=settings.draft_budget,
        )
        engine = open_engine(config)
        started = time.perf_counter()
        texts = {result.id: result.token_ids for result in engine.generate(requests)}
        seconds = time.perf_counter() - started
        total = engine.statistics
        self.figures["tokens_per_step"][name] = round(total.new_tokens / total.decode_steps, 3)
        self.figures["drafted_per_step"][name] = round(total.drafted / total.decode_steps, 3)
        self.figures["relaxed_token_rate"][name] = round(total.relaxed / total.new_tokens, 4)
        return Run([texts[request.id] for request in requests], seconds)


def ratios(speeds: Mapping[str, float], sizes: Sequence[int]) -> dict[str, float | None]:
    """The figures that the project holds itself to; None where a size was not measured."""

    def over(mode: str, size: int, peers: Sequence[str]) -> float | None:
        ours = speeds.get(f"vllm_dare_{mode}_b{size}")
        return round(ours / max(speeds[f"{peer}_b{size}"] for peer in peers), 3) if ours else None

    strict = {size: over("strict", size, ("vllm",)) for size in sizes}
    relaxed = {size: over("relaxed", size, ("vllm",) if size < _BUSY else tuple(_PEERS)) for size in sizes}
    return {
        "vllm_dare_strict_b1": strict.get(1),
        **{f"vllm_dare_relaxed_b{size}": relaxed.get(size) for size in (1, 4, 16)},
        "vllm_dare_strict_worst": min(ratio for ratio in strict.values() if ratio is not None),
        **{f"vllm_dare_strict_b{size}_over_vllm": ratio for size, ratio in strict.items()},
        **{
            f"engine_over_vllm_dare_{mode}_b{size}": round(
                speeds[f"engine_{mode}_b{size}"] / speeds[f"vllm_dare_{mode}_b{size}"], 3
            )
            for mode in _MODES
            for size in sizes
        },
    }


def _fidelity(
    settings: Settings, asked: "Sequence[Request]", runs: Mapping[str, Sequence[Run]], sizes: Sequence[int]
) -> dict[str, Any]:
    """Strict texts against those of vLLM's plain greedy decoding, of every size and run."""
    plain = models.load_model(settings)
    pairs = [
        (request.prompt_token_ids, expected, got)
        for size in sizes
        for theirs, ours in zip(runs[f"vllm_b{size}"], runs[f"vllm_dare_strict_b{size}"], strict=True)
        for request, expected, got in zip(asked, theirs.texts, ours.texts, strict=False)
    ]
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    return {
        "vllm_strict_wrong": sum(not is_tie(plain, *pair) for pair in differing),
        "vllm_strict_texts": len(pairs),
        "vllm_strict_ties": sum(is_tie(plain, *pair) for pair in differing),
    }
