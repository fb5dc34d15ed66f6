"""A small installation, its stages one by one in processes that can be killed, and its state kept and put back.

Every try works in the same data folder and in a database of the same name, so that paths are no difference.
"""

import json
import os
import resource
import shutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import DareError
from dare_core.stages import generate, group, load, plan, pools, pull
from dare_core.stages.request import RunRequest
from dare_core.storage.run_files import write_json
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import database_url
from tests.support.tiny_model import LAX, save_tiny_model

DOMAIN: Final = "movies"
#: How a stage's process ends: well; with a sentence for the user; or with a traceback, which is a defect.
WELL, WORDED, DEFECT = 0, 2, 1

#: Fitting clusters takes longer than everything else together.
_CLUSTERS: Final = "[grouping.users.clusters]"

_TABLES: Final = """
CREATE SCHEMA IF NOT EXISTS source;
CREATE TABLE source.items (item_id int, title text, release_year int, genres text[], updated_at timestamptz);
CREATE TABLE source.users (user_id int, age int, gender text, occupation text, updated_at timestamptz);
CREATE TABLE source.ratings (user_id int, item_id int, rating int, rated_at timestamptz);
INSERT INTO source.items
    SELECT n, 'Film ' || n, 1990 + mod(n, 2), ARRAY['Drama'], '2024-01-01' FROM generate_series(1, 12) AS n;
INSERT INTO source.users
    SELECT n, 20 + n, 'F', (ARRAY['writer', 'artist'])[1 + mod(n, 2)], '2024-01-01' FROM generate_series(1, 6) AS n;
INSERT INTO source.ratings
    SELECT u, i, 1 + mod(u + i, 5), '2024-01-02'::timestamptz + i * interval '1 minute'
    FROM generate_series(1, 6) AS u, generate_series(1, 12) AS i WHERE mod(u + i, 3) = 0;
"""
#: What happens between the first run and the one that is disturbed: things change, come and go.
_CHANGES: Final = """
UPDATE source.items SET title = title || ' again', updated_at = '2024-02-10' WHERE item_id <= 4;
INSERT INTO source.items
    SELECT n, 'Film ' || n, 1991, ARRAY['War'], '2024-02-10' FROM generate_series(13, 16) AS n;
DELETE FROM source.items WHERE item_id = 12;
INSERT INTO source.ratings
    SELECT u, i, 3, '2024-02-11'::timestamptz + i * interval '1 minute'
    FROM generate_series(1, 4) AS u, generate_series(1, 8) AS i;
"""
_FIRST: Final = RunRequest(run_id="first", domain=DOMAIN, as_of=datetime(2024, 2, 1, tzinfo=UTC))
#: The run that is disturbed.
RUN: Final = RunRequest(run_id="disturbed", domain=DOMAIN, as_of=datetime(2024, 3, 1, tzinfo=UTC))


@dataclass(frozen=True)
class Installation:
    """Where everything lies.

    Attributes:
        home: holds the data folder, the kept states, model and domain file.
        server_url: of the PostgreSQL server.
    """

    home: Path
    server_url: str

    @property
    def data_dir(self) -> Path:
        """The data folder that every try works in."""
        return self.home / "data"

    @property
    def database(self) -> str:
        """The URL of the database that every try works in."""
        return database_url(self.server_url, "tried")

    def settings(self) -> Settings:
        """Of every stage: texts are strict, so that no draft changes them, and no text is refused for what it says."""
        return Settings(
            data_dir=self.data_dir,
            config_dir=self.home / "config",
            warehouse_url=self.database,  # type: ignore[arg-type]
            model=str(self.home / "model"),
            verification="strict",
            max_new_tokens=24,
            shard_size=4,
            batch_size=3,
            checkpoint_seconds=0.01,
            max_generation_tasks=2,
            max_failing_share=1,
            draft_budget="fixed",
            probe_share=0,
            spark_master="local[1]",
        )

    def create(self) -> None:
        """Make the installation, with a first run done and changes waiting in the source."""
        shutil.rmtree(self.data_dir, ignore_errors=True)
        self.data_dir.mkdir(parents=True)
        (self.home / "config").mkdir(exist_ok=True)
        before, clusters, after = (PROJECT_DIR / "config" / f"{DOMAIN}.toml").read_text("utf-8").partition(_CLUSTERS)
        assert clusters
        text = before + after[after.index("[knowledge]") :].replace("min_new_events = 5", "min_new_events = 1") + LAX
        (self.home / "config" / f"{DOMAIN}.toml").write_text(text, "utf-8")
        save_tiny_model(self.home / "model")
        self.administer("DROP DATABASE IF EXISTS tried WITH (FORCE)")
        engine = connect(self.database)
        upgrade(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql(_TABLES)
        engine.dispose()

    def change_source(self) -> None:
        """Let things happen in the source."""
        engine = connect(self.database)
        with engine.begin() as connection:
            connection.exec_driver_sql(_CHANGES)
        engine.dispose()

    def keep(self, state: str) -> None:
        """Keep data folder and database as they are."""
        kept = self.home / "states" / state
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.data_dir, kept)
        self.administer(
            f"DROP DATABASE IF EXISTS state_{state} WITH (FORCE)", f"CREATE DATABASE state_{state} TEMPLATE tried"
        )

    def put_back(self, state: str) -> None:
        """Data folder and database as they were when ``state`` was kept."""
        shutil.rmtree(self.data_dir, ignore_errors=True)
        shutil.copytree(self.home / "states" / state, self.data_dir)
        self.administer("DROP DATABASE IF EXISTS tried WITH (FORCE)", f"CREATE DATABASE tried TEMPLATE state_{state}")

    def administer(self, *statements: str) -> None:
        """Run statements on the server, each by itself."""
        engine: Engine = connect(self.server_url)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()


# Stages, by name, in their order. What Airflow hands from task to task is a file here, written when a stage is done.


def _generate(settings: Settings, request: RunRequest) -> list[dict[str, Any]]:
    return [generate.run(settings, request, part) for part in plan.assignments(settings, request)]


def _build(settings: Settings, request: RunRequest) -> dict[str, Any]:
    return pools.build_candidates(settings, request.domain, request.kinds)


def _publish(settings: Settings, request: RunRequest) -> dict[str, Any]:
    candidates = json.loads(handed_on(settings, request, "pool_build").read_text("utf-8"))
    return dict(pools.publish_candidates(settings, request.domain, candidates))


Stage = Callable[[Settings, RunRequest], Any]
STAGES: Final[dict[str, Stage]] = {
    "pull": pull.run,
    "group": group.run,
    "plan": plan.run,
    "generate": _generate,
    "load": load.run,
    "pool_build": _build,
    "publish": _publish,
}


#: What a run does before it knows whether there is anything to write.
_BEFORE_TEXTS: Final = ("pull", "group", "plan")


def handed_on(settings: Settings, request: RunRequest, stage: str) -> Path:
    """What a stage returned."""
    return settings.data_dir / "handed_on" / request.run_id / f"{stage}.json"


def perform(
    home: str,
    server_url: str,
    stages: Sequence[str],
    run_id: str = RUN.run_id,
    before: Callable[[], None] | None = None,
) -> None:
    """Some stages of a run, in a process and process group of its own.

    Args:
        home: the installation's.
        server_url: likewise.
        stages: in their order.
        run_id: of the run; other than that all runs ask the same.
        before: what goes wrong in this process, set up here.
    """
    os.setpgid(0, 0)
    request = _FIRST if run_id == _FIRST.run_id else RUN.model_copy(update={"run_id": run_id})
    log = (Path(home) / "last_error.txt").open("w")
    try:
        settings = Installation(Path(home), server_url).settings()
        if before is not None:
            before()
        for stage in stages:
            if stage not in _BEFORE_TEXTS and _nothing_to_write(settings, request):
                break
            done = STAGES[stage](settings, request)
            write_json(handed_on(settings, request, stage), json.dumps(done, default=str))
    except DareError as error:
        _lift_limits()
        print(f"{type(error).__name__}: {error}", file=log, flush=True)
        os._exit(WORDED)
    except BaseException:  # noqa: BLE001  it is reported by the exit status
        _lift_limits()
        traceback.print_exc(file=log)
        log.flush()
        os._exit(DEFECT)
    os._exit(WELL)


def _nothing_to_write(settings: Settings, request: RunRequest) -> bool:
    """Whether the plan found nothing to do, which ends a run."""
    planned = handed_on(settings, request, "plan")
    return planned.exists() and not json.loads(planned.read_text("utf-8"))["requests"]


def _lift_limits() -> None:
    """What is said of an error may be written."""
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_AS):
        resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
