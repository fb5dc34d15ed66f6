"""``dare bench decode``: our engine beside what one could run instead, on the same MovieLens prompts in one run."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from bench.contenders import COLD, FULL, ONCE, RECORD, SHARED_MACHINE, Contenders, chosen
from bench.decode_prompts import OnProgress, Plan, movie_requests, strict_pool
from bench.engine_process import engine_process
from bench.figures import ratios
from bench.machine import machine
from bench.ours import STORAGES, OurEngines
from bench.shared_machine import SharedMachine, shared_ratios
from dare_core.config.settings import Settings
from dare_core.engines.plain import Run
from dare_core.pools import Pool

if TYPE_CHECKING:
    from dare_core.models import LanguageModel

#: Logits so near to each other are a tie (DESIGN.md decision 9).
_TIE: Final = 1e-3
#: Sequences of the steps whose launches are counted.
_COUNTED: Final = 2

Runs = Mapping[str, Sequence[Run]]


def bench_decode(settings: Settings, plan: Plan, on_progress: OnProgress = lambda what: None) -> dict[str, Any]:
    """Measure tokens per second; see docs/benchmarks.md for who takes part and what the keys mean.

    Besides, what the engine drafted and what of it was accepted is recorded under ``data_dir`` for
    :func:`bench.project.project`.

    Raises:
        InputError: there is no contender of a name, or there are not as many items.
    """
    started = time.monotonic()
    names = chosen(plan)
    settings = settings.model_copy(update={"dtype": "float32", "weights": "model"})  # contenders' names say others
    asked, others = movie_requests(settings, plan)
    pool, pool_texts = strict_pool(settings, plan, others, on_progress)
    longest = max(len(request.prompt_token_ids) + request.max_new_tokens for request in asked)
    ours = OurEngines(settings, pool, longest)
    contenders = Contenders(settings, plan, asked, ours, pool_texts, on_progress)
    shared = SharedMachine(settings, pool, contenders.at(FULL), FULL, on_progress)
    measures_shared = SHARED_MACHINE in names and FULL in plan.batch_sizes
    disturbed: list[dict[str, float]] = []
    with ExitStack() as peers:
        run_by_name = contenders.start(peers)
        runs: dict[str, list[Run]] = {name: [] for name in run_by_name}
        for repeat in range(plan.repeats):
            begun = time.monotonic()
            for name in run_by_name if repeat % 2 == 0 else reversed(run_by_name):
                if repeat and name.rpartition("_b")[0] in ONCE:
                    continue
                on_progress(f"{name}, run {repeat + 1} of {plan.repeats}")
                runs[name].append(run_by_name[name]())
            if measures_shared:
                disturbed.append(shared.measure())
            now = time.monotonic()
            if repeat + 1 < plan.repeats and now - started + (now - begun) > 60 * plan.minutes:
                on_progress(f"no time for more than {repeat + 1} of {plan.repeats} runs in {plan.minutes:g} minutes")
                break
    if RECORD in names:
        _record(settings, plan, contenders, ours, pool, on_progress)
    speeds = {name: statistics.median(run.tokens_per_second for run in made) for name, made in runs.items()}
    return {
        **ratios(speeds, plan.batch_sizes),
        f"cold_over_undrafted_b{FULL}": _seconds_over(runs, "fp32_undrafted", COLD),
        **shared_ratios(disturbed),
        **_fidelity(contenders, plan, runs),
        f"overhead_ms_b{FULL}": _overhead_ms(contenders, ours, on_progress),
        "tokens_per_second": {name: round(speed, 2) for name, speed in speeds.items()},
        "runs": {name: [round(run.tokens_per_second, 2) for run in made] for name, made in runs.items()},
        "shared_machine": [{what: round(speed, 2) for what, speed in made.items()} for made in disturbed],
        **_engine_figures(contenders),
        **asdict(plan),
        "pool_texts": pool.manifest.texts,
        "model": settings.model,
        "minutes_taken": round((time.monotonic() - started) / 60, 1),
        **_with_versions(machine(), contenders.versions),
    }


def _record(
    settings: Settings,
    plan: Plan,
    contenders: Contenders,
    ours: OurEngines,
    pool: Pool,
    on_progress: OnProgress,
) -> None:
    """Write the same prompts with trees of the paper's size, all of them verified, and keep what came of them."""
    from bench.record import Recorder, write_record

    on_progress("recording what is accepted")
    acceptance, timings = [], []
    for mode in ("strict", "relaxed"):
        recorder = Recorder(mode)
        engine = ours.open(f"fp32_{mode}", 1, recorder, draft_nodes=64, budget="fixed")
        list(engine.generate(contenders.at(1)))
        acceptance += recorder.acceptance
        timings += recorder.timings
    for size in plan.batch_sizes:
        recorder = Recorder("relaxed")
        list(ours.open("fp32_relaxed", size, recorder).generate(contenders.at(size)))
        timings += recorder.timings
    folder, few = settings.data_dir / "bench", contenders.at(1)[:_COUNTED]
    log = folder / "engine-launches.log"
    with engine_process(settings, pool, "fp32_relaxed", len(few), few, log, {"DARE_KERNELS": "0"}) as process:
        launches = process.count_launches(few)
    write_record(folder / "record", contenders.plain().model, acceptance, timings, launches)


def _fidelity(contenders: Contenders, plan: Plan, runs: Runs) -> dict[str, Any]:
    """Strict texts against transformers' greedy ones and against undrafted ones; narrow weights against full."""

    def texts(name: str, size: int) -> list[list[int]] | None:
        made = runs.get(f"{name}_b{size}")
        return made[0].texts if made else None

    most = max(plan.batch_sizes)
    figures: dict[str, Any] = dict.fromkeys(("strict_equal_share", "strict_wrong", "strict_texts"))
    greedy, strict = texts("generate", most), texts("fp32_strict", most)
    if greedy and strict:
        differing = [i for i, text in enumerate(strict) if text != greedy[i]]
        plain, asked = contenders.plain(), contenders.at(most)
        wrong = [i for i in differing if not is_tie(plain, asked[i].prompt_token_ids, greedy[i], strict[i])]
        figures["strict_equal_share"] = round(1 - len(differing) / len(greedy), 4)
        figures["strict_wrong"], figures["strict_texts"] = len(wrong), len(greedy)
    for precision in list(STORAGES)[1:]:
        pairs = [
            pair
            for size in plan.batch_sizes
            if (drafted := texts(f"{precision}_strict", size)) and (plainly := texts(f"{precision}_undrafted", size))
            for pair in zip(drafted, plainly, strict=True)
        ]
        figures[f"{precision}_strict_wrong"] = sum(a != b for a, b in pairs) if pairs else None
        narrow = texts(f"{precision}_strict", most)
        full = list(zip(narrow, strict, strict=True)) if narrow and strict else []
        figures[f"{precision}_equal_share"] = round(sum(a == b for a, b in full) / len(full), 4) if full else None
        common = [_common_prefix(a, b) for a, b in full]
        figures[f"{precision}_median_common_tokens"] = statistics.median(common) if common else None
    return figures


def _overhead_ms(contenders: Contenders, ours: OurEngines, on_progress: OnProgress) -> float | None:
    """Milliseconds of drafting, verifying and committing in a step of 16 sequences, eight nodes forced on each."""
    if f"fp32_relaxed_b{FULL}" not in contenders.last:
        return None
    on_progress("overhead of a step")
    engine = ours.open("fp32_relaxed", FULL, draft_nodes=8, budget="fixed")
    list(engine.generate(contenders.at(FULL)))
    total = engine.statistics
    return round(1e3 * (total.draft_seconds + total.verify_seconds + total.commit_seconds) / total.steps, 3)


def _engine_figures(contenders: Contenders) -> dict[str, Any]:
    """Of each of the engine's contenders, its last run: where time went, what was drafted and accepted."""
    names = ("tokens_per_step", "nodes_per_step", "relaxed_token_rate", "time_shares", "step_ms_by_rows")
    figures: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, engine in contenders.last.items():
        total, cost = engine.statistics, engine.step_cost
        times = {part: getattr(total, f"{part}_seconds") for part in ("draft", "forward", "verify", "commit")}
        whole = sum(times.values())
        figures["time_shares"][name] = {part: round(seconds / whole, 4) for part, seconds in times.items()}
        figures["tokens_per_step"][name] = round(total.new_tokens / total.decode_steps, 3)
        figures["nodes_per_step"][name] = round(total.drafted / total.decode_steps, 3)
        figures["relaxed_token_rate"][name] = round(total.relaxed / total.new_tokens, 4)
        if cost is not None:
            by_rows = zip(cost.rows, cost.seconds, strict=True)
            figures["step_ms_by_rows"][name] = {str(int(rows)): round(1e3 * took, 2) for rows, took in by_rows}
    return figures


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


def _seconds_over(runs: Runs, slower: str, faster: str) -> float | None:
    seconds = [[run.seconds for run in runs.get(f"{name}_b{FULL}", ())] for name in (slower, faster)]
    return round(statistics.median(seconds[0]) / statistics.median(seconds[1]), 3) if all(seconds) else None


def _with_versions(facts: dict[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    return {**facts, "versions": {**facts["versions"], **versions}}


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
