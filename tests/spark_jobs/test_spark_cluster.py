"""Pools built on a Spark standalone cluster, a master and two workers on loopback: the same bytes as in one process."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dare_core.config.settings import Settings
from dare_core.pools import PoolBuilder, PoolStore
from dare_core.pools.segments import Segment, SegmentEntry
from dare_core.schemas import TOKENS
from dare_core.sources.spark_submit import require_java, submit
from tests.support.local_cluster import HOST, spark_cluster, spark_status

pytestmark = pytest.mark.integration

VOCABULARY = 5000


def test_a_cluster_builds_the_segments_that_one_process_builds(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_java()
    home, conf = tmp_path / "cluster", tmp_path / "conf"
    home.mkdir()
    conf.mkdir()
    random = np.random.default_rng(0)
    groups = ["a huge group"] * 900 + ["日本 – «été»"] * 60 + ["Drama"] * 40
    texts = pa.table(
        {
            "group": groups,
            "token_ids": pa.array([random.integers(0, VOCABULARY, 100) for _ in groups], TOKENS),
            "entity_id": [str(number) for number in range(len(groups))],
        }
    )
    pq.write_table(texts, tmp_path / "texts.parquet", row_group_size=100)
    monkeypatch.setenv("SPARK_LOCAL_IP", HOST)  # the driver, too, stays on loopback
    arguments = [
        *("--knowledge", str(tmp_path / "texts.parquet")),
        *("--pool", str(tmp_path / "pool")),
        *("--vocabulary", str(VOCABULARY)),
        *("--segment-tokens", "25000"),
        *("--out", str(tmp_path / "segments.json")),
    ]
    with spark_cluster(home, conf) as (master, page):
        summary = submit(settings.model_copy(update={"spark_master": master}), "build_pools", arguments, "")
        status = spark_status(page)

    assert summary == {"groups": 3, "segments": 6, "texts": 1000, "tokens": 100_000}
    assert [application["state"] for application in status["completedapps"]] == ["FINISHED"]
    folders = home / "spark_worker_0", home / "spark_worker_1"
    assert all(any(folder.glob("app-*/*")) for folder in folders)  # both workers ran an executor
    listed = json.loads((tmp_path / "segments.json").read_text("utf-8"))
    assert [row.pop("group") for row in listed] == ["Drama", *["a huge group"] * 4, "日本 – «été»"]
    entries = [SegmentEntry(**row) for row in listed]

    built = PoolBuilder(PoolStore(tmp_path / "alone"), "model", "hash", VOCABULARY).build(texts)
    names = [entry.sha256 for entry in (entries[0], entries[5])]
    assert names == [built.groups[group].segments[0].sha256 for group in ("Drama", "日本 – «été»")]
    parts = [Segment.map(tmp_path / "pool" / "segments" / entry.sha256) for entry in entries[1:5]]
    whole = built.groups["a huge group"].segments[0].sha256
    assert Segment.merge(parts).to_bytes() == (tmp_path / "alone" / "segments" / whole).read_bytes()
