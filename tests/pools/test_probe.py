from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dare_core.errors import PoolError
from dare_core.pools import PoolBuilder, PoolStore
from dare_core.pools.probe import Probe, tokens_per_step
from dare_core.pools.register import CandidateRegister
from dare_core.schemas import TOKENS

GENERATOR = np.random.default_rng(7)
TEXTS = [GENERATOR.integers(0, 900, 60).astype(np.int32) for _ in range(6)]  # with nothing in common


def pool_texts(texts: dict[str, int]) -> pa.Table:
    """Texts by the entity that they are about, all of one group."""
    return pa.table(
        {
            "group": pa.array(["Drama"] * len(texts), pa.string()),
            "token_ids": pa.array([TEXTS[number] for number in texts.values()], TOKENS),
            "entity_id": pa.array(list(texts), pa.string()),
        }
    )


def test_texts_that_a_pool_holds_about_others_are_drafted_in_few_steps(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    poor = PoolBuilder(store, "model", "tokens", 1000).build(pool_texts({"a": 0, "b": 1}))
    rich = PoolBuilder(store, "model", "tokens", 1000).add(pool_texts({"c": 2, "d": 3}))
    probe = Probe(TEXTS[2:4], ["Drama", "Drama"], ["e", "f"])
    assert tokens_per_step(store, poor, probe, 16) == pytest.approx(1.0, abs=0.1)
    assert tokens_per_step(store, rich, probe, 16) > 5


def test_nothing_is_drafted_from_what_a_pool_holds_about_the_probes_own_entities(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    pool = PoolBuilder(store, "model", "tokens", 1000).build(pool_texts({"a": 0, "b": 1, "c": 2}))
    own = Probe(TEXTS[:2], ["Drama", "Drama"], ["a", "b"])
    assert tokens_per_step(store, pool, own, 16) == pytest.approx(1.0, abs=0.1)
    others = Probe(TEXTS[:2], ["Drama", "Drama"], ["x", "y"])
    assert tokens_per_step(store, pool, others, 16) > 5


def test_a_pool_of_the_probes_entities_alone_helps_nothing(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    pool = PoolBuilder(store, "model", "tokens", 1000).build(pool_texts({"a": 0}))
    assert tokens_per_step(store, pool, Probe(TEXTS[:1], ["Drama"], ["a"]), 16) == pytest.approx(1.0, abs=0.1)


def test_a_candidate_is_in_force_for_nobody_until_it_is_published(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    current = PoolBuilder(store, "model", "tokens", 1000).build(pool_texts({"a": 0}))
    builder = PoolStore(tmp_path, CandidateRegister(store.register))
    candidate = PoolBuilder(builder, "model", "tokens", 1000).add(pool_texts({"b": 1}))
    assert (store.current(), builder.current()) == (current.version, candidate.version)
    store.check(store.manifest(candidate.version))

    store.register.publish(candidate, current.version)
    assert store.versions() == [candidate.version, current.version]


def test_a_candidate_is_refused_when_another_version_was_published_meanwhile(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    current = PoolBuilder(store, "model", "tokens", 1000).build(pool_texts({"a": 0}))
    candidate = PoolBuilder(PoolStore(tmp_path, CandidateRegister(store.register)), "m", "tokens", 1000).add(
        pool_texts({"b": 1})
    )
    PoolBuilder(store, "model", "tokens", 1000).add(pool_texts({"c": 2}))
    with pytest.raises(PoolError, match="another builder has published"):
        store.register.publish(candidate, current.version)
