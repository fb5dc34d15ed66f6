"""What grouping is worth, on texts whose groups say everything about them, and nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from bench.grouping_gain import Replay, grouping_gain, item_groups, read_texts, replay_steps, user_groups
from dare_core.config.domains import load_domain
from dare_core.config.settings import load_settings
from dare_core.drafts import Context, Forest
from dare_core.errors import InputError
from dare_core.schemas import TOKENS


class Guess:
    """Drafts the same tree everywhere: 1 then 2 then 3, and 5 beside the first."""

    evidence_kinds = 1
    own_evidence = np.zeros(1, np.bool_)

    def resolve(self, group: str) -> str | None:
        return None

    def draft(self, contexts: Sequence[Context], max_nodes: int) -> Forest:
        n = len(contexts)
        tree = np.array([[1, -1, 1], [5, -1, 1], [2, 0, 2], [3, 2, 3]], np.int32)
        nodes = np.tile(tree, (n, 1))
        first = np.repeat(np.arange(n, dtype=np.int32) * 4, 4)
        parents = np.where(nodes[:, 1] < 0, -1, nodes[:, 1] + first).astype(np.int32)
        offsets = np.arange(n + 1, dtype=np.int32) * 4
        return Forest(offsets, nodes[:, 0], parents, nodes[:, 2], np.ones(4 * n, np.float32), np.zeros(4 * n, np.int16))

    def learn(self, context: Context, trusted: NDArray[np.bool_]) -> None:
        raise AssertionError("a replay teaches nothing")


def test_a_step_emits_the_drafted_tokens_that_the_text_goes_on_with_and_one_more() -> None:
    texts = [np.array(text, np.int32) for text in ([1, 2, 3, 9, 1, 2, 9, 5], [2, 3, 3], [5, 2, 1, 2, 3], [], [1, 2])]
    #                                              1 2 3 9|1 2 9|5           2|3|3     5 2|1 2 3               1 2
    assert replay_steps(Guess(), texts, ["g"] * 5, nodes=4) == [3, 3, 2, 0, 1]


def phrases(groups: Sequence[str], told_by: str) -> pa.Table:
    """Texts of stock phrases: of their group's own, or of everybody's."""
    random = np.random.default_rng(0)
    stock = {name: random.integers(0, 300, (12, 6)) for name in (*set(groups), "everybody")}
    rows = []
    for group in groups:
        own = stock[group if told_by == "group" else "everybody"]
        rows.append(np.concatenate([[random.integers(300, 900), *own[random.integers(12)]] for _ in range(6)]))
    return pa.table({"group": list(groups), "token_ids": pa.array(rows, TOKENS)})


def test_groups_with_phrases_of_their_own_beat_random_ones() -> None:
    gain = grouping_gain(phrases(["a", "b", "c"] * 20, "group"), Replay(nodes=16, resamples=200))
    assert gain["grouped_vs_random_low"] > 1.05
    assert gain["grouped_vs_random_low"] < gain["grouped_vs_random"] < gain["grouped_vs_random_high"]
    assert gain["tokens_per_step"]["grouped"] > gain["tokens_per_step"]["random"]
    assert (gain["texts"], gain["groups"]) == (60, 3)


def test_groups_that_say_nothing_are_worth_nothing() -> None:
    gain = grouping_gain(phrases(["a", "b", "c"] * 20, "everybody"), Replay(nodes=16, resamples=200))
    assert gain["grouped_vs_random_low"] < 1 < gain["grouped_vs_random_high"]
    assert gain["grouped_vs_one_pool"] < 1  # the one pool is three times as large


def test_too_few_texts_are_an_error() -> None:
    with pytest.raises(InputError, match="3 texts are too few to hold one of 5 parts out"):
        grouping_gain(phrases(["a"] * 3, "group"))


def test_items_are_grouped_as_the_domain_says() -> None:
    domain = load_domain(load_settings(), "movies")
    # Toy Story (1995), Snow White (1937), and the one row without a year.
    assert item_groups(domain, ["1", "99", "267"]) == ["1995", "rest", "unknown"]


def test_texts_and_clusters_that_are_not_there_are_errors(tmp_path: Path) -> None:
    texts = {"kind": ["item"], "entity_id": ["1"], "token_ids": [[1, 2]]}
    pq.write_table(pa.table(texts), tmp_path / "texts.parquet")
    assert read_texts(tmp_path / "texts.parquet", "item").column_names == ["entity_id", "token_ids"]
    with pytest.raises(InputError, match="holds no text of kind user"):
        read_texts(tmp_path / "texts.parquet", "user")
    with pytest.raises(InputError, match="no readable Parquet file"):
        read_texts(tmp_path / "none.parquet", "item")
    with pytest.raises(InputError, match="there is no group model beside the pool"):
        user_groups(tmp_path, ["1"])
