from pathlib import Path

import numpy as np
import pytest

from bench.pool import Plan, bench_pool
from bench.pool_charts import draw_pools
from bench.pool_texts import queries, read_corpus, texts_of
from dare_core.config.settings import Settings

KEYS = {
    "build_tokens_per_s", "bytes_per_token", "open_ms", "search_us_p50", "search_us_p99", "search_batch64_us",
    "search_segments_us_p50", "search_100m_us_p50", "delta_rebuild_ratio", "grouped_vs_random",
    "grouped_vs_random_low", "second_worker_mb",
}  # fmt: skip


def test_every_figure_is_there_and_its_chart_is_drawn(settings: Settings, tmp_path: Path) -> None:
    said: list[str] = []
    result = bench_pool(settings, Plan(20_000, large_tokens=30_000, nights=2, knowledge=None, sweep=True), said.append)
    assert result.keys() >= KEYS
    assert set(result["sizes"]) == {"10000", "20000", "30000"}
    measured = {key: result[key] for key in KEYS if not key.startswith("grouped")}  # made texts have no groups
    assert all(value is not None and value >= 0 for value in measured.values())
    assert {"pool", "python_trie", "prompt_lookup"} <= result["peers"].keys()
    assert all(peer["tokens_per_step"] > 1 for peer in result["peers"].values())
    assert ("arctic" in result["peers"]) != any("make bench-arctic" in line for line in said)
    draw_pools(result, tmp_path / "pools.svg")
    assert "tokens of the pool" in (tmp_path / "pools.svg").read_text()


def test_recombined_texts_reach_a_size_are_the_same_each_time_and_hold_nothing_held_out() -> None:
    corpus = read_corpus(None)
    texts = texts_of(corpus, 400_000)
    lengths = [len(ids) for ids in texts["token_ids"].to_pylist()]
    assert 400_000 <= sum(lengths) < 401_000
    assert texts.equals(texts_of(corpus, 400_000))
    assert len(set(texts["entity_id"].to_pylist())) == len(lengths)
    asked = queries(corpus, 50, 40)
    assert asked.shape == (50, 40)
    held_out = {text.tobytes() for text in corpus.held_out}
    assert not held_out & {np.array(ids, np.int32).tobytes() for ids in texts["token_ids"].to_pylist()}


@pytest.mark.parametrize("name", ["nothing.parquet"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    from dare_core.errors import InputError

    with pytest.raises(InputError, match="no readable Parquet file"):
        read_corpus(tmp_path / name)
