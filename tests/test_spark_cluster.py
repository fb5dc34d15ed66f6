"""Pools built on a Spark standalone cluster, a master and two workers on loopback: the same bytes as in one process."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest

from dare_core.pools import PoolStore
from dare_core.pools.segments import Segment, SegmentEntry
from dare_core.schemas import TOKENS
from dare_core.settings import Settings
from dare_core.spark_submit import require_java, submit

pytestmark = pytest.mark.integration

HOST, VOCABULARY = "127.0.0.1", 5000
SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"


@dataclass(frozen=True)
class Cluster:
    """A running master, what it says of itself, and the workers' folders."""

    master: str
    status: Callable[[], dict[str, Any]]
    folders: tuple[Path, Path]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_java()
    folder = tmp_path_factory.mktemp("cluster")
    port, web_port = free_port(), free_port()
    master = f"spark://{HOST}:{port}"
    environment = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"} | {"SPARK_LOCAL_IP": HOST}
    folders = folder / "worker-0", folder / "worker-1"
    deploy = "org.apache.spark.deploy"
    programs = [
        [f"{deploy}.master.Master", "--host", HOST, "--port", str(port), "--webui-port", str(web_port)],
        *(
            [f"{deploy}.worker.Worker", "--host", HOST, "--webui-port", "0", "--cores", "1", "--memory", "1g",
             "--work-dir", str(work), master]
            for work in folders
        ),
    ]  # fmt: skip

    def status() -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"http://{HOST}:{web_port}/json/", timeout=5).json()
        return answer

    with ExitStack() as running:
        for number, program in enumerate(programs):
            log = running.enter_context((folder / f"{number}.log").open("wb"))
            process = subprocess.Popen(
                [str(SPARK_CLASS), *program], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            running.callback(process.wait, 30)
            running.callback(process.terminate)
        until = time.monotonic() + 60
        while True:
            try:
                if status()["aliveworkers"] == 2:
                    break
            except httpx.HTTPError:
                pass
            assert time.monotonic() < until, (folder / "0.log").read_text()
            time.sleep(0.5)
        yield Cluster(master, status, folders)


def test_a_cluster_builds_the_segments_that_one_process_builds(
    cluster: Cluster, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    on_cluster = settings.model_copy(update={"spark_master": cluster.master})
    summary = submit(on_cluster, "build_pools", arguments, "")

    assert summary == {"groups": 3, "segments": 6, "texts": 1000, "tokens": 100_000}
    status = cluster.status()
    assert [application["state"] for application in status["completedapps"]] == ["FINISHED"]
    assert all(any(folder.glob("app-*/*")) for folder in cluster.folders)  # both workers ran an executor
    listed = json.loads((tmp_path / "segments.json").read_text("utf-8"))
    assert [row.pop("group") for row in listed] == ["Drama", *["a huge group"] * 4, "日本 – «été»"]
    entries = [SegmentEntry(**row) for row in listed]

    alone = PoolStore(tmp_path / "alone")
    built = alone.build(texts, "model", "hash", VOCABULARY)
    names = [entry.sha256 for entry in (entries[0], entries[5])]
    assert names == [built.groups[group].segments[0].sha256 for group in ("Drama", "日本 – «été»")]
    parts = [Segment.map(tmp_path / "pool" / "segments" / entry.sha256) for entry in entries[1:5]]
    whole = built.groups["a huge group"].segments[0].sha256
    assert Segment.merge(parts).to_bytes() == (tmp_path / "alone" / "segments" / whole).read_bytes()
