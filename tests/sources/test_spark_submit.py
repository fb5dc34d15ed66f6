"""``spark-submit`` of the real programs, and what happens without Java or with an interrupt."""

import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import psycopg
import pytest

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import ProgramMissingError, SourceError
from dare_core.schemas import GROUPED
from dare_core.sources.spark_submit import _command, _environment, _followed, require_java, submit
from dare_core.storage import run_files

TABLES = """
DROP SCHEMA IF EXISTS source CASCADE;
CREATE SCHEMA source;
CREATE TABLE source.items (item_id int, title text, release_year int, genres text[], updated_at timestamptz);
CREATE TABLE source.users (user_id int, age int, gender text, occupation text, updated_at timestamptz);
CREATE TABLE source.ratings (user_id int, item_id int, rating int, rated_at timestamptz);
INSERT INTO source.items VALUES (1, 'One', 1995, '{Drama}', '2024-01-01'), (2, 'Two', 1996, '{War}', '2024-01-01');
INSERT INTO source.users VALUES (1, 24, 'M', 'writer', '2024-01-01');
INSERT INTO source.ratings VALUES (1, 1, 5, '2024-01-02'), (1, 3, 5, '2024-01-02');
"""


@pytest.fixture
def movies_url(warehouse_url: str) -> Iterator[str]:
    """A handful of rows in the tables that ``config/movies.toml`` names."""
    with psycopg.connect(warehouse_url) as connection:
        connection.execute(TABLES)
    yield warehouse_url
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("DROP SCHEMA source CASCADE")


def arguments(*more: str) -> list[str]:
    return ["--domain-file", str(PROJECT_DIR / "config" / "movies.toml"), *more]


def test_both_programs_run_by_spark_submit_in_folders_of_any_name_whatever_the_locale(
    settings: Settings, movies_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    tmp_path = tmp_path / "Bücher 書"
    tmp_path.mkdir()
    pulled, grouped = str(tmp_path / "pulled"), str(tmp_path / "grouped")
    window = ["--kinds", "item", "user", "--since", "user=2024-01-02T00:00:00Z", "--as-of", "2024-02-01T00:00:00"]
    assert submit(settings, "pull", arguments(*window, "--out", pulled), movies_url) == {
        "item": 2, "item_gone": 0, "item_later": 0, "user": 1, "user_gone": 0, "user_later": 0,
        "new_interactions": 2, "dropped_interactions": 1, "later_interactions": 0,
    }  # fmt: skip
    asked = ["--as-of", "2024-02-01T00:00:00", "--pools", str(tmp_path / "pools"), "--in", pulled, "--out", grouped]
    summary = submit(settings, "group", arguments(*asked), movies_url)
    assert {name: summary[name] for name in ("item", "user")} == {"item": 2, "user": 1}
    assert len(run_files.read_table(Path(grouped) / "user", GROUPED)) == 1


def test_what_the_user_can_mend_is_one_line(settings: Settings, tmp_path: Path) -> None:
    nowhere = "postgresql://reader:hunter2@127.0.0.1:1/shop"
    window = ["--kinds", "item", "--as-of", "2024-02-01", "--out", str(tmp_path)]
    with pytest.raises(SourceError, match="the source database cannot be reached") as raised:
        submit(settings, "pull", arguments(*window), nowhere)
    assert "\n" not in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_another_failure_shows_the_end_of_the_log(settings: Settings) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)pull\.py ended with status 2:.*arguments are required: --kinds"):
        submit(settings, "pull", arguments(), "postgresql://nowhere")


@pytest.mark.parametrize("master", ["spark://master:7077", "yarn", "k8s://https://10.0.0.1:6443"])
def test_any_master_is_passed_through_and_what_the_defaults_set_is_left_to_them(
    settings: Settings, master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HADOOP_CONF_DIR", "/etc/hadoop")
    there = settings.model_copy(update={"spark_master": master})
    command = _command(there, "pull", ["--kinds", "item"])
    assert command[1:5] == ["--master", master, "--deploy-mode", "client"]
    named = {value.partition("=")[0] for name, value in pairwise(command) if name == "--conf"}
    assert named == {
        "spark.ui.showConsoleProgress", "spark.executorEnv.LC_ALL", "spark.executorEnv.PYTHONUTF8",
        "spark.driver.defaultJavaOptions", "spark.executor.defaultJavaOptions",
    }  # fmt: skip
    assert command[-3:] == [str(PROJECT_DIR / "spark_jobs" / "pull.py"), "--kinds", "item"]
    environment = _environment(there, "postgresql://nowhere")
    assert environment["HADOOP_CONF_DIR"] == "/etc/hadoop"
    assert "SPARK_LOCAL_IP" not in environment.keys() - os.environ.keys()


def test_what_a_program_tells_is_logged_while_it_runs_without_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the store")
    with (tmp_path / "log").open("w+b", buffering=0) as output, _followed(output.fileno(), "pull", "a://u:hunter2@h"):
        output.write(b"application: local-1 at http://h:4040\nnoise\nprogress: items (stage 3: 1 of 2 tasks)\nwarn")
        output.write(b"ing: hunter2 is no date of the store\nerror: told at the end\n")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "pull: application: local-1 at http://h:4040"),
        ("INFO", "pull: items (stage 3: 1 of 2 tasks)"),
        ("WARNING", "pull: *** is no date ***"),
    ]


def spark_processes(parent: int) -> list[psutil.Process]:
    """All descendants, once one of them is Spark's JVM."""
    try:
        family = psutil.Process(parent).children(recursive=True)
        return family if any("org.apache.spark.deploy.SparkSubmit" in child.cmdline() for child in family) else []
    except psutil.Error:  # one has ended meanwhile
        return []


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.skipif("sys.platform != 'linux'"))]
)
def test_neither_an_interrupt_nor_a_kill_leaves_anything_running(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "from dare_core.config.settings import load_settings; from dare_core.sources.spark_submit import submit;"
        f"submit(load_settings(data_dir={str(tmp_path)!r}), 'group', ['--help'], 'postgresql://nowhere')"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 60
        while not (spark := spark_processes(parent.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(number)
        assert parent.wait(20) == (-number if number == signal.SIGKILL else 128 + number)
        _, alive = psutil.wait_procs(spark, timeout=10)
        assert alive == []
    finally:
        parent.kill()


def java_that(tmp_path: Path, script: str) -> Path:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    return java


def test_a_missing_java_is_one_sentence_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissingError, match="needs Java 17 or 21, but there is no java on PATH; install it"):
        require_java()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ProgramMissingError, match="holds no bin/java"):
        require_java()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("""echo 'openjdk version "11.0.2" 2019-01-15' >&2""", "is Java 11;"),
        ("""echo 'java version "1.8.0_392"' >&2""", "is Java 8;"),
        ("""echo 'openjdk version "25" 2025-09-16' >&2; test "$#" = 1""", "is a trimmed Java 25 without the module"),
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", "does not run"),
    ],
)
def test_a_java_that_spark_cannot_use_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    java = java_that(tmp_path, script)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ProgramMissingError, match=message):
        require_java()
