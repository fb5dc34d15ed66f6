"""Several machines, as processes that share no folder: both DAGs through CeleryExecutor and a Spark cluster, a worker
lost on the way."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa

from dare_airflow.run_names import folder_name
from dare_core import models
from dare_core.config.settings import load_settings
from dare_core.knowledge import shards
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.storage.locations import Location, files_below, read_bytes
from dare_core.storage.run_files import read_parquet
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from tests.support.local_cluster import LocalCluster, celery_worker, local_cluster, lose

pytestmark = [pytest.mark.cluster, pytest.mark.integration, pytest.mark.timeout(1800)]

REFRESH, REBUILD = "refresh_knowledge_movies", "rebuild_pools_movies"
RUN_ID = "cluster"
RUN_NAME = folder_name(REFRESH, RUN_ID)  # the run as a folder and in the warehouse
ITEMS, USERS, MAX_NEW_TOKENS = 12, 6, 40

#: The heartbeat's timeout decides how long the test waits, so it is short here; docker/cluster.env says what for.
ENVIRONMENT = {
    "DARE_KERNELS": "0",  # compiling them takes longer than so few texts
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
}


@dataclass(frozen=True)
class Story:
    """The cluster after both DAGs ran, and what was staged when the worker was killed."""

    cluster: LocalCluster
    killed_shard: str
    rebuild_run: str
    parts: dict[Location, bytes]

    @property
    def run_dir(self) -> Location:
        return self.cluster.settings.run_dir(RUN_NAME)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    model = models.locate(load_settings())  # converted once per checkout
    with TemporaryDirectory(
        prefix="dare-cluster-"
    ) as folder:  # pytest's own is closed to the system user PostgreSQL runs as
        settings = load_settings(
            data_dir=Path(folder),
            warehouse_url=None,
            model=model,
            batch_size=2,  # so that texts are finished, and parts written, one after the other
            draft_nodes=8,
            draft_budget="fixed",  # measuring takes longer, too
            checkpoint_seconds=0.2,
            max_failing_share=1.0,  # so few tokens are no text to judge
        )
        with local_cluster(settings, ENVIRONMENT) as running, pytest.MonkeyPatch.context() as patched:
            for name, value in running.store.environment.items():
                patched.setenv(name, value)
            yield running


@pytest.fixture(scope="module")
def engine(cluster: LocalCluster) -> Iterator[sa.Engine]:
    engine = connect(cluster.warehouse_url)
    upgrade(engine)
    import_tables(engine, some(read_movielens()))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def story(cluster: LocalCluster, engine: sa.Engine) -> Iterator[Story]:
    airflow, run_dir = cluster.airflow, cluster.settings.run_dir(RUN_NAME)
    with airflow.runs.active(REFRESH, REBUILD):
        conf = {"item_limit": ITEMS, "user_limit": USERS, "max_new_tokens": MAX_NEW_TOKENS}
        airflow.api.trigger(REFRESH, conf, RUN_ID)
        shard = shard_under_way(cluster)
        lose(airflow, "worker_gpu")
        parts = {path: read_bytes(path) for path in stored(run_dir, "staged/*/part-*.parquet")}
        manifest = shards.read_manifest(shards.staged_folder(run_dir, shard))
        assert manifest is None, "the shard was finished before the kill"
        airflow.start("worker_gpu_2", celery_worker("gpu", "gpu-2"))
        airflow.runs.wait(REFRESH, RUN_ID)
        rebuild_run = airflow.runs.await_triggered(REFRESH, RUN_ID, REBUILD)
        airflow.runs.wait(REBUILD, rebuild_run)
        yield Story(cluster, shard, rebuild_run, parts)


def some(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The first users and items, and what they have to do with one another: what is tried is not how much."""
    users, items, ratings = tables["users"].slice(0, 120), tables["items"].slice(0, 200), tables["ratings"]
    among = [
        pc.is_in(ratings[key], table[key].combine_chunks()) for key, table in (("user_id", users), ("item_id", items))
    ]
    return {"users": users, "items": items, "ratings": ratings.filter(pc.and_(*among))}


def shard_under_way(cluster: LocalCluster) -> str:
    """Wait until a worker has staged a part of a shard that it has not finished."""
    run_dir = cluster.settings.run_dir(RUN_NAME)
    while True:
        cluster.airflow.check()
        assert cluster.airflow.api.run_state(REFRESH, RUN_ID) in ("queued", "running")
        for part in stored(run_dir, "staged/*/part-*.parquet"):
            if shards.read_manifest(part.parent) is None:
                return str(part.parent.name)
        time.sleep(0.05)


def rows(engine: sa.Engine, statement: str, **parameters: object) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.text(statement), parameters).all())


def stored(folder: Location, pattern: str) -> list[Location]:
    """The files of a folder on the shared storage whose paths below it match a pattern."""
    paths = [file.path for file in files_below(folder)]
    return [path for path in paths if PurePosixPath(str(path).removeprefix(f"{folder}/")).match(pattern)]


def staged(run_dir: Location, pattern: str) -> list[str]:
    """Request ids in staged files, doubled ones doubled."""
    return [
        id_ for path in stored(run_dir, pattern) for id_ in read_parquet(path, ["request_id"])["request_id"].to_pylist()
    ]


def test_every_planned_request_is_answered_exactly_once(story: Story, engine: sa.Engine) -> None:
    planned = staged(story.run_dir, "requests/*.parquet")
    answered = staged(story.run_dir, "staged/*/part-*.parquet") + staged(story.run_dir, "staged/*/failed-*.parquet")
    assert len(planned) == ITEMS + USERS
    assert sorted(answered) == sorted(planned)

    kept = rows(
        engine,
        "SELECT request_id FROM knowledge.knowledge WHERE run_id = :run_id "
        "UNION ALL SELECT DISTINCT request_id FROM knowledge.quarantine WHERE run_id = :run_id",
        run_id=RUN_NAME,
    )
    assert sorted(request_id for (request_id,) in kept) == sorted(planned)


def test_what_the_killed_worker_had_staged_stays_and_the_next_one_goes_on_from_there(story: Story) -> None:
    assert story.parts
    assert {path: read_bytes(path) for path in story.parts} == story.parts
    manifest = shards.read_manifest(shards.staged_folder(story.run_dir, story.killed_shard))
    assert manifest is not None
    before = [path for path in story.parts if path.parent.name == story.killed_shard]
    assert 0 < manifest["resumed"] < manifest["requests"]
    assert manifest["resumed"] == sum(len(read_parquet(path, ["request_id"])) for path in before)


def test_the_lost_task_and_no_other_was_tried_again(story: Story) -> None:
    tasks = story.cluster.airflow.api.tasks(REFRESH, RUN_ID)
    assert {task.state for task in tasks} == {"success"}
    assert [task.task_id for task in tasks if task.try_number > 1] == ["generate"]


def test_no_two_processes_have_a_data_folder_in_common(story: Story) -> None:
    airflow = story.cluster.airflow
    told = {process.pid: airflow.variables_of(name)["DARE_DATA_DIR"] for name, process in airflow.processes.items()}
    seen = {  # but of those that write a title over their variables
        process.pid: environment["DARE_DATA_DIR"]
        for process in psutil.Process().children()
        if "DARE_DATA_DIR" in (environment := process.environ())
    }
    assert all(told.get(pid, folder) == folder for pid, folder in seen.items())
    folders = [Path(folder) for folder in (told | seen).values()]
    names = {"scheduler", "api_server", "triggerer", "worker_cpu", "worker_gpu_2", "spark_worker_0", "spark_worker_1"}
    assert {folder.name for folder in folders} >= names
    assert len(set(folders)) == len(folders)
    assert {folder.parent for folder in folders} == {story.cluster.machines}


def test_what_was_run_lies_in_the_store_alone(story: Story) -> None:
    shared = story.cluster.settings.shared
    kinds = {str(file.path).removeprefix(f"{shared}/").partition("/")[0] for file in files_below(shared)}
    assert kinds >= {"runs", "pools", "data_docs"}
    home = story.cluster.settings.data_dir
    for folder in (home, *story.cluster.machines.iterdir()):
        assert kinds.isdisjoint(path.name for path in folder.iterdir())
    run = [path for path in home.rglob("*") if path.suffix == ".parquet" or path.name == RUN_NAME]
    assert run == []


def test_the_pools_were_published_from_what_was_loaded(story: Story, engine: sa.Engine) -> None:
    published = dict(
        rows(engine, "SELECT kind, coalesce(sum(texts), 0) FROM knowledge.pool_version WHERE is_current GROUP BY kind")
    )
    loaded = dict(rows(engine, "SELECT kind, count(*) FROM knowledge.knowledge GROUP BY kind"))
    assert published == loaded
    assert sum(loaded.values()) > 0


def test_the_spark_cluster_ran_the_jobs(story: Story) -> None:
    applications = story.cluster.spark_status()["completedapps"]
    assert len(applications) >= 2  # pull and group
    assert {application["state"] for application in applications} == {"FINISHED"}


def test_generation_alone_went_through_the_queue_of_the_gpu_worker(story: Story) -> None:
    secrets = story.cluster.settings.data_dir.resolve() / "cluster" / "secrets"
    metadata = connect((secrets / "airflow_database_url").read_text("ascii"))
    queues = rows(metadata, "SELECT DISTINCT task_id, queue FROM task_instance WHERE run_id = :run_id", run_id=RUN_ID)
    metadata.dispose()
    assert {task_id for task_id, queue in queues if queue == "gpu"} == {"generate"}
    assert {queue for task_id, queue in queues if task_id != "generate"} == {"default"}


def test_secrets_are_their_owners_alone_and_in_no_log(story: Story) -> None:
    home = story.cluster.settings.data_dir
    secrets = sorted((home / "cluster" / "secrets").iterdir())
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    values = {
        value
        for path in secrets
        for value in path.read_text("ascii").replace("@", ":").replace('"', " ").replace(":", " ").split()
        if len(value) >= 22
    }
    logs = [path for path in home.rglob("*.log") if path.is_file()]
    assert logs
    found = {(path.name, value[:4]) for path in logs for value in values if value in path.read_text("utf-8", "replace")}
    assert found == set()
