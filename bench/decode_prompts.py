"""What the decoding benches write: prompts about films, and a pool of strict texts about other films."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dare_core import models
from dare_core.config.domains import load_domain
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.prompts import render
from dare_core.pools import Pool, PoolBuilder, PoolDrafter, PoolStore
from dare_core.schemas import POOL_TEXT
from dare_core.sources.movielens import read_movielens
from dare_core.storage.atomic import appearing

if TYPE_CHECKING:
    from dare_core.decoding import Request

OnProgress = Callable[[str], None]

#: Prompts at least; batches get two rounds of them.
_PROMPTS: Final = 16


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        prompts: items to write about, none of them in the pool.
        pool_texts: strict texts of other items that the pool is built of; written once and kept under ``data_dir``.
        max_new_tokens: length of a text.
        batch_sizes: sequences at once.
        contenders: their names (:mod:`bench.contenders`); none means all.
        repeats: runs of each contender, in alternating order; medians are reported.
        minutes: no further repeat is begun when it would not end within these; the pool's writing counts.
    """

    prompts: int = 64
    pool_texts: int = 1618
    max_new_tokens: int = 96
    batch_sizes: tuple[int, ...] = (1, 4, 16, 32)
    repeats: int = 3
    minutes: float = 90
    contenders: tuple[str, ...] = ()

    def prompts_at(self, batch_size: int) -> int:
        """How many of the prompts are written ``batch_size`` at a time."""
        return min(self.prompts, max(_PROMPTS, 2 * batch_size))


def movie_requests(settings: Settings, plan: Plan) -> "tuple[list[Request], list[Request]]":
    """The prompts asked, and those of the pool's texts; both spread evenly over all items."""
    from dare_core.decoding import Request

    domain = load_domain(settings, "movies")
    encoder = ChatEncoder(models.load_tokenizer(settings))
    items = [row for row in read_movielens()["items"].to_pylist() if row["genres"]]
    total = plan.prompts + plan.pool_texts
    if total > len(items):
        raise InputError(f"{plan.prompts} prompts and {plan.pool_texts} pool texts exceed the {len(items)} items")
    spread = [items[i * len(items) // total] for i in range(total)]
    requests = [
        Request(
            row["item_id"], row["genres"][0], encoder.encode(render(domain, "item", row).message), plan.max_new_tokens
        )
        for row in spread
    ]
    chosen = [i * total // plan.prompts for i in range(plan.prompts)]
    random.Random(0).shuffle(chosen)  # noqa: S311  # so that the first few are of all kinds
    return [requests[i] for i in chosen], [requests[i] for i in range(total) if i not in set(chosen)]


def strict_pool(
    settings: Settings, plan: Plan, others: "list[Request]", on_progress: OnProgress
) -> tuple[Pool, list[list[int]]]:
    """A pool of strict texts, written on first use, and the texts' token ids.

    Args:
        settings: the model's name, and where the pool is kept.
        plan: batch sizes.
        others: the texts to write.
        on_progress: told how far it is.
    """
    tokenizer_hash = models.tokenizer_hash(models.load_tokenizer(settings))
    asked = hashlib.sha256(repr([(r.id, r.max_new_tokens) for r in others]).encode()).hexdigest()[:12]
    store = PoolStore(settings.data_dir / "bench" / f"{tokenizer_hash}-{asked}")
    kept = store.root / "texts.parquet"
    if not kept.exists():
        on_progress(f"writing a pool of {len(others)} texts, once")
        texts = _write_texts(settings, plan, others, on_progress)
        with appearing(kept) as scratch:
            pq.write_table(texts, scratch)
    texts = pq.read_table(kept)
    if not (store.root / "CURRENT").exists():
        PoolBuilder(store, settings.model, tokenizer_hash, models.vocabulary_size(settings)).build(texts)
    return Pool.open(store, tokenizer_hash), texts["token_ids"].to_pylist()


def _write_texts(settings: Settings, plan: Plan, others: "list[Request]", on_progress: OnProgress) -> pa.Table:
    from dare_core.decoding import Engine, EngineConfig, Rule

    language_model = models.load_model(settings)
    config = EngineConfig(
        max_sequences=max(plan.batch_sizes),
        max_length=max(len(request.prompt_token_ids) + request.max_new_tokens for request in others),
        rule=Rule("strict"),
        eos_token_ids=language_model.eos_token_ids,
        draft_nodes=settings.draft_nodes,
    )
    rows = []
    groups = {request.id: request.group for request in others}
    for result in Engine(language_model.model, PoolDrafter(None), config).generate(others):
        rows.append({"group": groups[result.id], "token_ids": result.token_ids})
        if len(rows) % 50 == 0:
            on_progress(f"pool: {len(rows)} of {len(others)} texts")
    rows.sort(key=lambda row: (row["group"], row["token_ids"]))
    return pa.Table.from_pylist(rows, POOL_TEXT)
