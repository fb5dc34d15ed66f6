"""``dare bench decode``: our engine beside transformers, on the same MovieLens prompts in one run."""

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dare_core import models
from dare_core.bench.plain import Timing, generate_plainly
from dare_core.domains import load_domain
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.prompts import render
from dare_core.knowledge.writer import Writer
from dare_core.pools import Pool, PoolStore
from dare_core.schemas import POOL_TEXT
from dare_core.settings import Settings, Verification
from dare_core.sources.movielens import read_movielens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dare_core.decoding import Request


def bench_decode(
    settings: Settings,
    prompts: int,
    pool_texts: int,
    max_new_tokens: int,
    repeats: int,
    on_progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure tokens per second of transformers ``generate`` and of the engine, one sequence and a batch.

    Args:
        settings: the model; ``batch_size`` is the batch that both sides get.
        prompts: items to write about, none of them in the pool.
        pool_texts: strict texts of other items that the pool is built of; written once and kept under ``data_dir``.
        max_new_tokens: length of a text.
        repeats: how often each contender runs, in alternating order; medians are reported.
        on_progress: told what is being done.
    """
    from dare_core.decoding import Request

    tokenizer = models.load_tokenizer(settings)
    domain = load_domain(settings, "movies")
    encoder = ChatEncoder(tokenizer)
    items = [row for row in read_movielens()["items"].to_pylist() if row["genres"]]
    spread = items[:: max(1, len(items) // (prompts + pool_texts))]

    def requests(rows: list[dict[str, Any]]) -> "list[Request]":
        return [
            Request(row["item_id"], row["genres"][0], encoder.encode(render(domain, "item", row)), max_new_tokens)
            for row in rows
        ]

    asked = requests(spread[:prompts])
    on_progress(f"pool of {pool_texts} texts")
    pool = _pool(settings, requests(spread[prompts : prompts + pool_texts]), tokenizer)

    def plain(batch_size: int) -> Timing:
        return generate_plainly(language_model, [list(r.prompt_token_ids) for r in asked], max_new_tokens, batch_size)

    def ours(verification: Verification, batch_size: int) -> Timing:
        writer = Writer(
            settings.model_copy(update={"verification": verification, "batch_size": batch_size}), tokenizer, pool
        )
        list(writer.write(asked))
        steps[verification, batch_size] = writer.throughput.tokens / writer.throughput.steps
        return Timing(writer.throughput.tokens, writer.throughput.seconds)

    language_model = models.load_model(settings)
    steps: dict[tuple[str, int], float] = {}
    batch = min(settings.batch_size, prompts)
    contenders: dict[str, Callable[[], Timing]] = {
        "generate_b1": lambda: plain(1),
        "strict_b1": lambda: ours("strict", 1),
        "relaxed_b1": lambda: ours("relaxed", 1),
        f"generate_b{batch}": lambda: plain(batch),
        f"strict_b{batch}": lambda: ours("strict", batch),
        f"relaxed_b{batch}": lambda: ours("relaxed", batch),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name in contenders if repeat % 2 == 0 else reversed(contenders):
            on_progress(f"{name}, run {repeat + 1} of {repeats}")
            speeds[name].append(contenders[name]().tokens_per_second)
    medians = {name: statistics.median(runs) for name, runs in speeds.items()}
    ratios = {
        f"{mode}_b{size}_vs_generate": round(medians[f"{mode}_b{size}"] / medians[f"generate_b{size}"], 3)
        for mode in ("strict", "relaxed")
        for size in dict.fromkeys((1, batch))
    }
    return {
        **ratios,
        "tokens_per_second": {name: round(speed, 2) for name, speed in medians.items()},
        "tokens_per_step": {f"{mode}_b{size}": round(value, 3) for (mode, size), value in steps.items()},
        "prompts": len(asked),
        "pool_texts": pool.manifest.texts,
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
        "model": settings.model,
        "dtype": settings.dtype,
    }


def _pool(settings: Settings, requests: "Sequence[Request]", tokenizer: "PreTrainedTokenizerBase") -> Pool:
    """A pool of the requests' strict texts, written by the engine on first use."""
    tokenizer_hash = models.tokenizer_hash(tokenizer)
    length = requests[0].max_new_tokens if requests else 0
    store = PoolStore(settings.data_dir / "bench" / f"{tokenizer_hash}-{len(requests)}x{length}")
    if not (store.root / "CURRENT").exists():
        writer = Writer(settings.model_copy(update={"verification": "strict"}), tokenizer, None)
        texts = {result.id: result.token_ids for result in writer.write(requests)}
        rows = [{"group": request.group, "token_ids": texts[request.id]} for request in requests]
        store.build(pa.Table.from_pylist(rows, POOL_TEXT), settings.model, tokenizer_hash, len(tokenizer))
    return store.open(tokenizer_hash)
