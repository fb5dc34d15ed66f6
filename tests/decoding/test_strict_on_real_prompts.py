"""Strict texts of the bundled model on MovieLens prompts equal transformers' greedy ones (DESIGN.md decision 9)."""

import copy

import pyarrow as pa

from dare_core import models
from dare_core.config.domains import load_domain
from dare_core.config.settings import load_settings
from dare_core.decoding import Engine, EngineConfig, Request, Rule
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.prompts import render
from dare_core.pools import Pool, PoolBuilder, PoolStore
from dare_core.pools.drafter import PoolDrafter
from dare_core.sources.movielens import read_movielens
from tests.decoding.reference import greedy, is_tie

PROMPTS = 32
NEW_TOKENS = 24


def test_strict_texts_of_32_real_prompts_equal_greedy_generate(tmp_path) -> None:
    settings = load_settings()
    domain = load_domain(settings, "movies")
    language_model = models.load_model(settings)
    tokenizer = models.load_tokenizer(settings)
    encoder = ChatEncoder(tokenizer)
    rows = read_movielens()["items"].to_pylist()[:: 1682 // PROMPTS][:PROMPTS]
    prompts = [encoder.encode(render(domain, "item", row).message) for row in rows]
    groups = [row["genres"][0] for row in rows]
    expected = [greedy(language_model.model, prompt, NEW_TOKENS) for prompt in prompts]

    # A pool of the other half's texts: most drafts are near misses, some are right.
    texts = pa.table({"group": groups[::2], "token_ids": pa.array(expected[::2], pa.list_(pa.int32()))})
    store = PoolStore(tmp_path)
    PoolBuilder(store, settings.model, models.tokenizer_hash(tokenizer), models.vocabulary_size(settings)).build(texts)
    pool = Pool.open(store, models.tokenizer_hash(tokenizer))

    config = EngineConfig(8, 512, Rule("strict"), language_model.eos_token_ids)
    requests = [
        Request(str(i), group, prompt, NEW_TOKENS)
        for i, (group, prompt) in enumerate(zip(groups, prompts, strict=True))
    ]
    results = {
        r.id: r for r in Engine(copy.deepcopy(language_model.model), PoolDrafter(pool), config).generate(requests)
    }

    differing = [i for i in range(PROMPTS) if results[str(i)].token_ids != expected[i]]
    ties = [i for i in differing if is_tie(language_model.model, prompts[i], expected[i], results[str(i)].token_ids)]
    assert differing == ties
    assert len(ties) <= 0.02 * PROMPTS
    steps = sum(r.statistics.steps for r in results.values())
    tokens = sum(r.statistics.new_tokens for r in results.values())
    assert tokens > 1.5 * steps  # the pool was of use
