"""``dare bench pool``: what a retrieval pool costs to build, keep, open and search, beside what else one could take.

docs/pools.md says what each key means. Times of searches are of the compiled call that turns the last tokens of a text
into a draft tree, drafting from the pool alone; ``draft_call_us`` is one whole ``PoolDrafter.draft`` from Python.
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.grouping_gain import Replay, grouping_gain
from bench.pool_texts import Corpus, queries, read_corpus, texts_of
from dare_core.config.settings import Settings
from dare_core.drafts import Context, Drafter
from dare_core.pools import GLOBAL_GROUP, Pool, PoolBuilder, PoolDrafter, PoolStore, retention
from dare_core.pools.learned import LearnedTexts
from dare_core.pools.probe import replay_steps
from dare_core.pools.trees import Workspace, addresses_of, grow_trees

#: Nodes of a draft tree (paper).
_NODES: Final = 64
_BATCH: Final = 64
_QUERIES: Final = 2048
#: Tokens of the output so far in a query.
_LENGTH: Final = 40
#: A night's new texts, as a share of the pool at first.
_NIGHT: Final = 0.01
#: A pool of a base and so many recent segments is searched.
_RECENT: Final = 8
#: Pools for plots; peers that hold their index in Python objects stop at the second size.
_SIZES: Final = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_PEER_TOKENS: Final = 100_000

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        tokens: of the pool.
        large_tokens: of the large pool; 0 leaves it out.
        nights: of incremental builds.
        knowledge: Parquet file with real texts: ``token_ids``, and ``group`` or ``attribute`` for the gain of grouping.
        sweep: measure build and search at smaller sizes too, for plots.
    """

    tokens: int
    large_tokens: int
    nights: int
    knowledge: Path | None
    sweep: bool


def bench_pool(settings: Settings, plan: Plan, on_progress: OnProgress = lambda what: None) -> dict[str, Any]:
    """Measure; the keys at the top level are those of docs/pools.md."""
    corpus = read_corpus(plan.knowledge)
    asked = queries(corpus, _QUERIES, _LENGTH)
    folder = settings.data_dir / "bench" / "pools"
    on_progress(f"building a pool of {plan.tokens} tokens")
    built = _build(folder / "base", corpus, plan.tokens)
    store, pool = built.store, built.pool
    result = _figures(built, asked)
    sizes = {str(plan.tokens): dict(result)}
    on_progress("a base and eight recent segments")
    result["search_segments_us_p50"] = _segments_us(folder / "recent", corpus, plan.tokens, asked)
    on_progress("a second worker")
    result["second_worker_mb"] = _second_worker_mb(store, asked, folder)
    on_progress(f"{plan.nights} nights")
    result |= _nights(folder / "nights", built, corpus, plan, on_progress)
    on_progress("acceptance")
    result |= _gain(plan.knowledge, on_progress)
    result["peers"] = _peers(folder / "peers", corpus, asked, on_progress)
    if plan.large_tokens:
        on_progress(f"building a pool of {plan.large_tokens} tokens")
        large = sizes[str(plan.large_tokens)] = _figures(_build(folder / "large", corpus, plan.large_tokens), asked)
        result["search_100m_us_p50"] = large["search_us_p50"]
    if plan.sweep:
        for size in _SIZES:
            if size < max(plan.tokens, plan.large_tokens) and str(size) not in sizes:
                on_progress(f"building a pool of {size} tokens")
                sizes[str(size)] = _figures(_build(folder / "sweep", corpus, size), asked)
    return {
        **result,
        "sizes": sizes,
        "tokens": pool.manifest.tokens,
        "texts": corpus.source,
        "real_tokens": sum(map(len, corpus.texts)),
        "queries": _QUERIES,
        **{name: value for name, value in asdict(plan).items() if name not in ("knowledge", "tokens")},
    }


@dataclass(frozen=True)
class _Built:
    store: PoolStore
    pool: Pool
    rate: int
    seconds: float


def _build(root: Path, corpus: Corpus, tokens: int) -> _Built:
    """Build a pool of one group, the hardest to search, and time it; files and the global pool included."""
    _warm_up(corpus)
    texts = texts_of(corpus, tokens)
    shutil.rmtree(root, ignore_errors=True)
    store = PoolStore(root)
    began = time.perf_counter()
    manifest = PoolBuilder(store, "bench", "bench", corpus.vocabulary).build(texts)
    seconds = time.perf_counter() - began
    return _Built(store, Pool.open(store, "bench"), round(manifest.tokens / seconds), seconds)


def _figures(built: _Built, asked: NDArray[np.int32]) -> dict[str, Any]:
    """What is measured of a pool of any size."""
    manifest = built.pool.manifest
    return {
        "build_tokens_per_s": built.rate,
        "bytes_per_token": round(manifest.size / manifest.tokens, 3),
        "open_ms": _open_ms(built.store),
        **_searched(built.pool, asked),
    }


def _warm_up(corpus: Corpus) -> None:
    """Compile what building and merging call."""
    from dare_core.pools.segments import Segment

    small = Segment.build(texts_of(corpus, 1000), corpus.vocabulary)
    Segment.merge([small, Segment.build(texts_of(corpus, 500, seed=1), corpus.vocabulary)])


def _open_ms(store: PoolStore) -> float:
    """A version's open on a host that has checked its bytes before, with the group's files mapped; median of nine."""
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        Pool.open(store, "bench").area("bench")
        taken.append(1e3 * (time.perf_counter() - began))
    return round(statistics.median(taken), 2)


class _Search:
    """The compiled call on prepared arguments."""

    def __init__(self, pool: Pool, asked: NDArray[np.int32], both: bool = False) -> None:
        area = (*pool.area("bench"), *(pool.area(GLOBAL_GROUP) if both else (0, 0)))
        self._pool, self._segments, self._learned = (
            pool,
            pool.segments,
            LearnedTexts(0),
        )  # kept while they are pointed to
        self._known = addresses_of(self._learned, self._segments)
        self._asked = asked
        self._job = (asked.shape[1], 0, *area)

    def __call__(self, first: int, end: int, work: Workspace) -> float:
        """Seconds for the queries ``[first, end)``."""
        jobs = np.array([self._job] * (end - first), np.int64)
        texts, known, most = self._asked[first:end].ravel(), self._known, (end - first) * _NODES
        nodes, shares, evidence = np.empty((3, most), np.int32), np.empty(most, np.float32), np.empty(most, np.int16)
        ends = np.empty(end - first, np.int32)
        began = time.perf_counter()
        grow_trees(texts, jobs, False, known, work.addresses, nodes, shares, evidence, ends, _NODES)
        return time.perf_counter() - began


def _searched(pool: Pool, asked: NDArray[np.int32]) -> dict[str, Any]:
    """Microseconds of a search and its tree, warm: all queries have been asked before, once."""
    search, work = _Search(pool, asked), [Workspace(32), Workspace(32)]
    one, both = _each_us(search, work[0]), _each_us(_Search(pool, asked, both=True), work[0])
    with ThreadPoolExecutor(2) as threads:
        batches = [(first, first + _BATCH // 2, first + _BATCH) for first in range(0, len(asked) - _BATCH + 1, _BATCH)]
        taken = []
        for first, middle, end in batches * 3:
            began = time.perf_counter()
            other = threads.submit(search, middle, end, work[1])
            search(first, middle, work[0])
            other.result()
            taken.append(1e6 * (time.perf_counter() - began) / _BATCH)
    alone = [1e6 * search(first, end, work[0]) / _BATCH for first, _, end in batches * 3]
    drafter = PoolDrafter(pool)
    contexts = [Context("bench", query, 0, len(query)) for query in asked]
    calls = []
    for context in [*contexts[:50], *contexts]:
        began = time.perf_counter()
        drafter.draft([context], _NODES)
        calls.append(1e6 * (time.perf_counter() - began))
    return {
        "search_us_p50": round(statistics.median(one), 1),
        "search_us_p99": round(float(np.percentile(one, 99)), 1),
        "search_batch64_us": round(statistics.median(taken), 1),
        "search_batch64_one_core_us": round(statistics.median(alone), 1),
        "search_with_global_us_p50": round(statistics.median(both), 1),
        "draft_call_us_p50": round(statistics.median(calls[50:]), 1),
    }


def _each_us(search: _Search, work: Workspace) -> list[float]:
    for first in range(_QUERIES):
        search(first, first + 1, work)
    return [1e6 * search(first, first + 1, work) for first in range(_QUERIES)]


def _segments_us(root: Path, corpus: Corpus, tokens: int, asked: NDArray[np.int32]) -> float:
    """A base and eight recent segments of a night each, searched as one group."""
    from dare_core.pools.segments import Segment

    shutil.rmtree(root, ignore_errors=True)
    store = PoolStore(root)
    parts = [Segment.build(texts_of(corpus, tokens, seed=0), corpus.vocabulary)]
    for night in range(1, _RECENT + 1):
        parts.append(Segment.build(texts_of(corpus, int(tokens * _NIGHT), seed=night), corpus.vocabulary))
    from dare_core.pools.manifest import GroupManifest, PoolManifest

    entries = tuple(store.write_segment(part) for part in parts)
    manifest = PoolManifest.of(
        {"bench": GroupManifest(entries), GLOBAL_GROUP: GroupManifest(())},
        model="bench", tokenizer_hash="bench", vocabulary=corpus.vocabulary, scheme="", halvings=0, forgotten=(),
    )  # fmt: skip
    search = _Search(Pool(store, manifest), asked)
    return round(statistics.median(_each_us(search, Workspace(32))), 1)


def _second_worker_mb(store: PoolStore, asked: NDArray[np.int32], folder: Path) -> float:
    """Private memory that a second worker takes for a pool that a first one has open."""
    saved = folder / "queries.npy"
    np.save(saved, asked)
    command = [sys.executable, "-m", "bench.pool_worker", str(store.root), str(saved)]
    workers = []
    try:
        for _ in range(2):
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            workers.append(worker)
            assert worker.stdout is not None
            taken = float(worker.stdout.readline())
    finally:
        for worker in workers:
            worker.communicate("")
    return taken


def _nights(root: Path, built: _Built, corpus: Corpus, plan: Plan, on_progress: OnProgress) -> dict[str, Any]:
    """Nights that each add new texts, merges included, over a full build of the pool at first."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(built.store.root, root)
    store = PoolStore(root)
    Pool.open(store, "bench")  # this host checks the bytes once
    taken = []
    for night in range(1, plan.nights + 1):
        texts = texts_of(corpus, int(plan.tokens * _NIGHT), seed=night)
        began = time.perf_counter()
        manifest = PoolBuilder(store, "bench", "bench", corpus.vocabulary).add(texts)
        taken.append(time.perf_counter() - began)
        retention.expire(store, 2)
    return {
        "delta_rebuild_ratio": round(statistics.mean(taken) / built.seconds, 4),
        "delta_seconds": {"mean": round(statistics.mean(taken), 3), "longest": round(max(taken), 3)},
        "full_build_seconds": round(built.seconds, 3),
        "segments_at_last": len(manifest.groups["bench"].segments),
    }


def _gain(knowledge: Path | None, on_progress: OnProgress) -> dict[str, Any]:
    """What grouping brings, on real texts; null without any."""
    missing = {"grouped_vs_random": None, "grouped_vs_random_low": None}
    if knowledge is None:
        return missing
    import pyarrow.parquet as pq

    table = pq.read_table(knowledge)
    if "kind" in table.column_names:
        import pyarrow.compute as pc

        table = table.filter(pc.equal(table["kind"], "item"))
    name = next((name for name in ("group", "attribute") if name in table.column_names), None)
    if name is None:
        return missing
    texts = pa.table({"group": table[name], "token_ids": table["token_ids"]})
    found = grouping_gain(texts, Replay(), on_progress)
    return {key: found[key] for key in missing} | {"grouping": found}


def _peers(
    root: Path, corpus: Corpus, asked: NDArray[np.int32], on_progress: OnProgress
) -> dict[str, dict[str, float]]:
    """Search time, tokens per step on held-out texts, and build rate of the pool and of what else one could take."""
    from bench import arctic_client
    from bench.pool_peers import PromptLookup, PythonTrie

    texts = texts_of(corpus, min(_PEER_TOKENS, sum(map(len, corpus.texts))))
    rows = [np.array(ids, np.int32) for ids in texts["token_ids"].to_pylist()]
    held_out = corpus.held_out[:60]
    contexts = [Context("bench", query, 0, len(query)) for query in asked[:300]]

    def pool() -> PoolDrafter:
        shutil.rmtree(root, ignore_errors=True)
        store = PoolStore(root)
        PoolBuilder(store, "bench", "bench", corpus.vocabulary).build(texts)
        return PoolDrafter(Pool.open(store, "bench"), learned_tokens=0, use_own_text=False, use_global=False)

    def figures(drafter: Drafter, build_seconds: float, calls: Sequence[float]) -> dict[str, float]:
        steps = replay_steps(drafter, held_out, ["bench"] * len(held_out), _NODES)
        return {
            "build_tokens_per_s": round(sum(map(len, rows)) / build_seconds),
            "draft_call_us_p50": round(1e6 * statistics.median(calls), 1),
            "tokens_per_step": round(sum(map(len, held_out)) / sum(steps), 3),
        }

    pool().draft(contexts[:1], _NODES)
    compared: dict[str, dict[str, float]] = {}
    for name, make in (("pool", pool), ("python_trie", lambda: PythonTrie(rows)), ("prompt_lookup", PromptLookup)):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        drafter = make()
        seconds = time.perf_counter() - began
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        taken = []
        for context in contexts:
            began = time.perf_counter()
            drafter.draft([context], _NODES)
            taken.append(time.perf_counter() - began)
        compared[name] = figures(drafter, seconds, taken) | {"more_memory_mb": round(grown / 1024, 1)}
    if not arctic_client.VENV.exists():
        on_progress("Arctic Inference is not installed (make bench-arctic): its row will be missing")
        return compared
    with arctic_client.serving_arctic(rows, root.with_name("arctic.log")) as cache:
        compared["arctic"] = figures(cache, cache.build_seconds, cache.seconds_of_each(contexts, _NODES))
    return compared


def write_result(result: dict[str, Any], path: Path) -> None:
    """Keep a result for charts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
