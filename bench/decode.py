"""``dare bench decode``: our engine beside transformers and vLLM, on the same MovieLens prompts in one run."""

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.decode_prompts import OnProgress, Plan, movie_requests, strict_pool
from bench.vllm_client import VENV, VllmPeer, serving_vllm
from dare_core import models
from dare_core.config.settings import Settings
from dare_core.engines.plain import Run, generate_continuously, generate_plainly
from dare_core.pools import PoolDrafter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dare_core.decoding import Engine, EngineConfig, Request
    from dare_core.decoding.weights import Storage
    from dare_core.models import LanguageModel

#: The reduced precision of transformers and vLLM that is measured besides.
_REDUCED: Final = "bfloat16"
#: How our contenders whose names begin so store their weights; arithmetic stays in fp32.
_NARROW: Final[dict[str, "Storage"]] = {"bf16": "bfloat16", "int8": "int8"}
#: vLLM's engines: name, precision, tokens that n-gram speculation proposes.
_VLLM: Final = (("vllm", "float32", 0), ("vllm_ngram", "float32", 4), ("bf16_vllm", _REDUCED, 0))
#: Those in full precision, and sequences from which on we are compared with the better of them.
_VLLM_FP32: Final = ("vllm", "vllm_ngram")
_BUSY: Final = 16
#: Logits so near to each other are a tie (DESIGN.md decision 9).
_TIE: Final = 1e-3


def bench_decode(settings: Settings, plan: Plan, on_progress: OnProgress = lambda what: None) -> dict[str, Any]:
    """Measure tokens per second; see docs/benchmarks.md for who takes part and what the keys mean.

    Besides, what the engine drafted and what of it was accepted is recorded under ``data_dir`` for
    :func:`bench.project.project`.
    """
    started = time.monotonic()
    bench = _Bench(settings, plan, on_progress)
    with ExitStack() as peers:
        contenders = bench.contenders(peers)
        runs: dict[str, list[Run]] = {name: [] for name in contenders}
        for repeat in range(plan.repeats):
            begun = time.monotonic()
            for name in contenders if repeat % 2 == 0 else reversed(contenders):
                on_progress(f"{name}, run {repeat + 1} of {plan.repeats}")
                runs[name].append(contenders[name]())
            now = time.monotonic()
            if repeat + 1 < plan.repeats and now - started + (now - begun) > 60 * plan.minutes:
                on_progress(f"no time for more than {repeat + 1} of {plan.repeats} runs in {plan.minutes:g} minutes")
                break
    bench.record()
    speeds = {name: statistics.median(run.tokens_per_second for run in made) for name, made in runs.items()}
    return {
        **_ratios(speeds, plan),
        "overhead_ms_b16": bench.overhead_ms(),
        **bench.fidelity(runs),
        "tokens_per_second": {name: round(speed, 2) for name, speed in speeds.items()},
        "runs": {name: [round(run.tokens_per_second, 2) for run in made] for name, made in runs.items()},
        **bench.engine_figures(),
        **asdict(plan),
        "pool_texts": bench.pool.manifest.texts,
        "model": settings.model,
    }


class _Bench:
    """The prompts, the pool, the models, and what the engine's runs left to be reported."""

    def __init__(self, settings: Settings, plan: Plan, on_progress: OnProgress) -> None:
        self._settings, self._plan, self._on_progress = settings, plan, on_progress
        types = dict.fromkeys((settings.dtype, _REDUCED))
        self._plain: dict[str, LanguageModel] = {
            dtype: models.load_model(settings.model_copy(update={"dtype": dtype})) for dtype in types
        }
        stored: tuple[Storage, ...] = ("model", *_NARROW.values())
        self._ours = {storage: models.load_model(settings) for storage in stored}  # the engine takes them over
        self._asked, others = movie_requests(settings, plan)
        self._last: dict[str, Engine] = {}  # of each contender's runs
        self.pool = strict_pool(settings, plan, others, self._ours["model"], on_progress)

    def contenders(self, peers: ExitStack) -> dict[str, Callable[[], Run]]:
        """Every contender by name, which ends with its batch size; starts vLLM where it is installed."""
        sizes, named = self._plan.batch_sizes, dict[str, Callable[[], Run]]()
        for size in dict.fromkeys((1, *sizes)):
            named[f"generate_b{size}"] = partial(self._generate, size)
        named["prompt_lookup_b1"] = partial(self._generate, 1, prompt_lookup_num_tokens=10)
        named["generate_batch_b16"] = partial(self._generate_batch, 16)
        for size in sizes:
            for kind in ("undrafted", "strict", "relaxed"):
                named[f"{kind}_b{size}"] = partial(self._write, f"{kind}_b{size}", size)
        for size in (1, 16):
            named[f"ungrouped_relaxed_b{size}"] = partial(self._write, f"ungrouped_relaxed_b{size}", size)
        reduced = _computes_reduced()
        if not reduced:
            self._on_progress(f"this processor only emulates {_REDUCED}: the peers' figures in it will be missing")
        for size in (1, 16):
            if reduced:
                named[f"bf16_generate_b{size}"] = partial(self._generate, size, dtype=_REDUCED)
            for kind in (f"{narrow}_{mode}_b{size}" for narrow in _NARROW for mode in ("strict", "relaxed")):
                named[kind] = partial(self._write, kind, size)
        if not VENV.exists():
            self._on_progress("vLLM is not installed (make vllm-env): its figures will be missing")
            return named
        for name, dtype, ngram in _VLLM:
            if dtype == _REDUCED and not reduced:
                continue
            self._on_progress(f"starting {name}")
            peer = peers.enter_context(self._vllm(name, dtype, ngram))
            for size in sizes if dtype == self._settings.dtype else (1, 16):
                prompts = [request.prompt_token_ids for request in self._at(size)]
                named[f"{name}_b{size}"] = partial(peer.write, prompts, self._plan.max_new_tokens, size)
        return named

    def fidelity(self, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
        """Strict texts against transformers' greedy ones, and reduced precision against full."""
        size = max(self._plan.batch_sizes)
        prompts = [request.prompt_token_ids for request in self._at(size)]
        greedy = runs[f"generate_b{size}"][0].texts
        strict = runs[f"strict_b{size}"][0].texts
        differing = [i for i, text in enumerate(strict) if text != greedy[i]]
        plain = self._plain[self._settings.dtype]
        wrong = [i for i in differing if not is_tie(plain, prompts[i], greedy[i], strict[i])]
        figures: dict[str, Any] = {
            "strict_equal_share": round(1 - len(differing) / len(greedy), 4),
            "strict_wrong": len(wrong),
            "strict_texts": len(greedy),
        }
        for narrow in _NARROW:
            # Both are the first so many prompts' texts.
            pairs = list(zip(runs[f"{narrow}_strict_b16"][0].texts, greedy, strict=False))
            figures[f"{narrow}_equal_share"] = round(sum(a == b for a, b in pairs) / len(pairs), 4)
            figures[f"{narrow}_median_common_tokens"] = statistics.median(_common_prefix(a, b) for a, b in pairs)
        return figures

    def overhead_ms(self) -> float:
        """Milliseconds of drafting, verifying and committing in a step of 16 sequences, eight nodes forced on each."""
        from dare_core.decoding import Engine

        self._on_progress("overhead of a step")
        engine = Engine(*self._parts("relaxed_b16", 16, draft_nodes=8, budget="fixed"))
        list(engine.generate(self._at(16)))
        total = engine.statistics
        return round(1e3 * (total.draft_seconds + total.verify_seconds + total.commit_seconds) / total.steps, 3)

    def engine_figures(self) -> dict[str, Any]:
        """Of each of the engine's contenders, its last run: where time went, what was drafted and accepted."""
        figures: dict[str, dict[str, Any]] = {"tokens_per_step": {}, "nodes_per_step": {}, "relaxed_token_rate": {}}
        figures["time_shares"] = {}
        for name, engine in self._last.items():
            total = engine.statistics
            times = {part: getattr(total, f"{part}_seconds") for part in ("draft", "forward", "verify", "commit")}
            whole = sum(times.values())
            figures["time_shares"][name] = {part: round(seconds / whole, 4) for part, seconds in times.items()}
            figures["tokens_per_step"][name] = round(total.new_tokens / total.decode_steps, 3)
            figures["nodes_per_step"][name] = round(total.drafted / total.decode_steps, 3)
            figures["relaxed_token_rate"][name] = round(total.relaxed / total.new_tokens, 4)
        # Where arithmetic is the limit every token costs at least one row.
        step_cost = self._last[f"relaxed_b{max(self._plan.batch_sizes)}"].step_cost
        assert step_cost is not None
        figures["ceiling_rows_per_second"] = round(step_cost.rows[-1] / step_cost.seconds[-1])
        figures["step_ms_by_rows"] = {
            str(int(rows)): round(1e3 * seconds, 2)
            for rows, seconds in zip(step_cost.rows, step_cost.seconds, strict=True)
        }
        return figures

    def _at(self, batch_size: int) -> "list[Request]":
        return self._asked[: self._plan.prompts_at(batch_size)]

    def _generate(self, size: int, dtype: str | None = None, **options: Any) -> Run:
        plain = self._plain[dtype or self._settings.dtype]
        plain.model.set_attn_implementation("sdpa")
        prompts = [request.prompt_token_ids for request in self._at(size)]
        return generate_plainly(plain, prompts, self._plan.max_new_tokens, size, **options)

    def _generate_batch(self, size: int) -> Run:
        prompts = [request.prompt_token_ids for request in self._at(size)[:size]]
        return generate_continuously(self._plain[self._settings.dtype], prompts, self._plan.max_new_tokens)

    def _write(self, name: str, size: int) -> Run:
        from dare_core.decoding import Engine

        engine = self._last[name] = Engine(*self._parts(name, size))
        return _timed(engine, self._at(size))

    def record(self) -> Path:
        """Write the same prompts with trees of the paper's size, all of them verified, and keep what came of them."""
        from bench.record import RecordingEngine, write_record

        self._on_progress("recording what is accepted")
        acceptance, timings = [], []
        for mode in ("strict", "relaxed"):
            engine = RecordingEngine(*self._parts(f"{mode}_b1", 1, draft_nodes=64, budget="fixed"))
            list(engine.generate(self._at(1)))
            acceptance += engine.acceptance
            timings += engine.timings
        for size in self._plan.batch_sizes:
            engine = RecordingEngine(*self._parts(f"relaxed_b{size}", size))
            list(engine.generate(self._at(size)))
            timings += engine.timings
        folder = self._settings.data_dir / "bench" / "record"
        write_record(folder, self._plain[self._settings.dtype].model, acceptance, timings)
        return folder

    def _parts(
        self, name: str, size: int, **changes: Any
    ) -> "tuple[PreTrainedModel, PoolDrafter | None, EngineConfig]":
        """What an engine is made of: precision, drafts and verification as a contender's name says."""
        model, config = self._model_and_config(name, size)
        drafter = PoolDrafter(self.pool, self._settings.learned_tokens, grouped="ungrouped" not in name)
        return model, None if name.startswith("undrafted") else drafter, replace(config, **changes)

    def _model_and_config(self, name: str, size: int) -> "tuple[PreTrainedModel, EngineConfig]":
        from dare_core.decoding import EngineConfig, Rule

        settings = self._settings
        storage: Storage = _NARROW.get(name[:4], "model")
        ours = self._ours[storage]
        longest = max(len(request.prompt_token_ids) for request in self._asked) + self._plan.max_new_tokens
        config = EngineConfig(
            max_sequences=size,
            max_length=longest,
            rule=Rule("relaxed" if "relaxed" in name else "strict", settings.top_k, settings.min_prob),
            eos_token_ids=ours.eos_token_ids,
            draft_nodes=settings.draft_nodes,
            weights=storage,
        )
        return ours.model, config

    def _vllm(self, name: str, dtype: str, ngram: int) -> AbstractContextManager[VllmPeer]:
        return serving_vllm(
            Path(models.locate(self._settings)),
            dtype,
            max(len(request.prompt_token_ids) for request in self._asked) + self._plan.max_new_tokens,
            max(self._plan.batch_sizes),
            sorted(self._ours["model"].eos_token_ids),
            ngram,
            self._settings.data_dir / "bench" / f"{name}.log",
        )


def is_tie(language_model: "LanguageModel", prompt: Sequence[int], expected: list[int], got: list[int]) -> bool:
    """Whether the first difference is between two tokens of equal logits, but for rounding.

    Args:
        language_model: one that no engine has taken over.
        prompt: of both texts.
        expected: the text that is right.
        got: the other.
    """
    import torch

    model = language_model.model
    model.set_attn_implementation("sdpa")
    at = _common_prefix(expected, got)
    if at >= min(len(expected), len(got)):
        return False
    with torch.inference_mode():
        top = model(torch.tensor([[*prompt, *expected[:at]]])).logits[0, -1].topk(2)
    return set(top.indices.tolist()) == {expected[at], got[at]} and float(top.values[0] - top.values[1]) < _TIE


def _computes_reduced() -> bool:
    """Whether the processor multiplies matrices in bfloat16; emulated it takes minutes a text."""
    import torch

    from dare_core.decoding.weights import PackedLinear

    try:
        PackedLinear(torch.nn.Linear(16, 16, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True


def _timed(engine: "Engine", requests: "Sequence[Request]") -> Run:
    started = time.perf_counter()
    texts = {result.id: result.token_ids for result in engine.generate(requests)}
    return Run([texts[request.id] for request in requests], time.perf_counter() - started)


def _ratios(speeds: Mapping[str, float], plan: Plan) -> dict[str, float | None]:
    """The figures that the project holds itself to; None where a peer was not measured."""

    def best(kind: str) -> float:
        return max(speed for name, speed in speeds.items() if re.fullmatch(rf"{kind}_b\d+", name))

    def over_vllm(mode: str, size: int, kinds: Sequence[str] = _VLLM_FP32) -> float | None:
        theirs = [speeds[name] for kind in kinds if (name := f"{kind}_b{size}") in speeds]
        ours = speeds.get(f"{mode}_b{size}")
        return round(ours / max(theirs), 3) if theirs and ours else None

    worst = [ratio for size in plan.batch_sizes if (ratio := over_vllm("strict", size)) is not None]
    return {
        "strict_b1_vs_generate": round(speeds["strict_b1"] / speeds["generate_b1"], 3),
        "relaxed_b1_vs_generate": round(speeds["relaxed_b1"] / speeds["generate_b1"], 3),
        "strict_best_vs_generate_best": round(best("strict") / best("generate"), 3),
        "relaxed_best_vs_generate_best": round(best("relaxed") / best("generate"), 3),
        # Beside vLLM as it runs by default; from 16 sequences on, and for the worst, beside the better of its two.
        **{
            f"relaxed_b{size}_vs_vllm_b{size}": over_vllm("relaxed", size, ("vllm",) if size < _BUSY else _VLLM_FP32)
            for size in plan.batch_sizes
        },
        **{f"relaxed_b{size}_vs_vllm_best_b{size}": over_vllm("relaxed", size) for size in plan.batch_sizes},
        "strict_worst_vs_vllm": min(worst, default=None),
    }


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
