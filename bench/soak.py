"""Mixed work for as long as one likes: does anything fail, or grow?

On loopback, in ``data_dir/soak``: refreshes of a small MovieLens over and over, each a process of its own after source
rows were altered; a publisher that rebuilds pools, puts each version in force and expires the oldest; SQL readers with
the reader's role; and a second engine, :mod:`bench.soak_follower`, which drafts from whatever version is in
force and must write what the refreshes wrote. Meanwhile memory, open files, connections and latencies are sampled.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import psycopg
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from dare_core.config.settings import Settings
from dare_core.engines.peer_process import running
from dare_core.errors import DareError
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving

OnProgress = Callable[[str], None]

_ITEMS: Final = 48
_USERS: Final = 24
#: Source rows that are altered before each refresh, so that each has texts to write.
_ALTERED: Final = {"items": 8, "users": 4}
_NEW_TOKENS: Final = 32
#: Seconds between a reader's queries, on average, and between samples.
_PAUSE: Final = 1.0
_SAMPLE: Final = 5.0
_ERRORS_LISTED: Final = 20

#: What readers ask, each with the id of an item and of a user at hand.
_QUERIES: Final = {
    "similar_items": "SELECT * FROM features.similar_items(%(item)s, 10)",
    "match": "SELECT * FROM features.match(%(user)s, 10)",
    "as_of": "SELECT count(*) FROM features.as_of(now() - interval '1 minute')",
    "freshness": "SELECT * FROM features.freshness",
    "item": "SELECT item_id, text, embedding FROM features.item WHERE domain = 'movies' AND item_id = %(item)s",
    "user": "SELECT user_id, text, embedding FROM features.user WHERE domain = 'movies' AND user_id = %(user)s",
    "efficiency": "SELECT kind, sum(tokens) FROM features.decoding_efficiency GROUP BY kind",
}


@dataclass(frozen=True)
class Sample:
    """One look at everything.

    Attributes:
        at: seconds since the start.
        memory: MB of each process that lives all the time, and of the refresh: resident; of the server's processes
            together, what each has to itself.
        files: open ones, of the same.
        connections: to the warehouse.
        p50, p95: milliseconds of the queries since the last sample; None: there were none.
    """

    at: float
    memory: dict[str, float]
    files: dict[str, int]
    connections: int
    p50: float | None
    p95: float | None


@dataclass
class _Tally:
    """What happened so far; written by all threads."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    #: Seconds of every query, and of those since the last sample.
    latencies: "array[float]" = field(default_factory=lambda: array("f"))
    recent: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    refreshed_at: list[float] = field(default_factory=list)
    refresh_pid: int | None = None

    def error(self, what: str, said: object) -> None:
        """Count an error; the first ones are listed."""
        self.counts[what] += 1
        if len(self.errors) < _ERRORS_LISTED:
            self.errors.append(f"{what}: {' '.join(str(said).split())}")


def bench_soak(
    settings: Settings, minutes: float, readers: int = 50, on_progress: OnProgress = lambda what: None
) -> dict[str, Any]:
    """Let everything work at once, and watch it.

    Args:
        settings: model and data folder; of ``data_dir/soak`` the logs are left.
        minutes: of mixed work, after the first refresh, which fills the warehouse.
        readers: at once.
        on_progress: told what happens.

    Returns:
        ``failed_queries``, ``failed_refreshes``, ``failed_publications``, ``failed_follows`` and ``errors``, the first
        of them in words; ``queries``, ``refreshes``, ``publications``, ``versions_followed``, ``texts_compared`` and
        ``texts_different`` (of the second engine from the first); latencies in ms of the first and the last third;
        ``growth`` of each process's memory and open files, and of connections (see :func:`growth`); and ``samples``.

    Raises:
        DareError: the first refresh fails, or a process does not start.
    """
    here = _prepared(settings)
    tally = _Tally()
    with serving(here) as url, _warehouse(url) as engine:
        on_progress("the first refresh")
        if said := _refresh(here, url, 0, tally):
            raise DareError(f"the first refresh failed: {said}")
        ended, started = threading.Event(), time.monotonic()
        logs = here.data_dir / "logs"
        with (
            running("the second engine", _program("soak_follower"), logs / "follower.log") as follower,
            running("the publisher", _program("soak_publisher"), logs / "publisher.log") as publisher,
        ):
            question = {"settings": _kept(here), "url": url}
            work = [
                lambda: _refreshes(here, url, engine, started, ended, tally),
                lambda: _ask(follower.ask, question, "failed_follows", ended, tally, _note_follow),
                lambda: _ask(publisher.ask, question, "failed_publications", ended, tally, _note_publication),
                *(_reader(url, number, ended, tally) for number in range(readers)),
            ]
            threads = [threading.Thread(target=one, daemon=True) for one in work]
            for thread in threads:
                thread.start()
            watched = {"readers": os.getpid(), "second engine": follower.pid, "publisher": publisher.pid}
            samples = list(_samples(here, engine, watched, started, minutes * 60, tally, on_progress))
            ended.set()
            for thread in threads:
                thread.join()
    for path in here.data_dir.iterdir():
        if path != logs and not path.is_symlink():  # they say more of a failure than its one line
            shutil.rmtree(path)
    return _figures(samples, tally, readers)


def growth(at: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Whether a series grows.

    Returns:
        ``per_hour``: the slope of the second half; ``ratio``: the mean of the last third over that of the middle one.
    """
    half, third = len(at) // 2, len(at) // 3
    slope = float(np.polyfit(at[half:], values[half:], 1)[0]) * 3600 if len(at) - half > 1 else 0.0
    middle, last = np.mean(values[third : 2 * third] or values), np.mean(values[2 * third :] or values)
    return {"per_hour": round(slope, 2), "ratio": round(float(last / middle), 4) if middle else 1.0}


def _prepared(settings: Settings) -> Settings:
    """Settings of a data folder of the bench's own; strict, so that two engines can be compared."""
    folder = settings.data_dir.expanduser().resolve() / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(settings.models_dir.resolve())  # weights are converted once
    changes = {
        "data_dir": folder, "warehouse_url": None, "verification": "strict", "max_new_tokens": _NEW_TOKENS,
        "max_failing_share": 1.0, "max_acceptance_loss": 1.0, "spark_master": "local[1]", "probe_share": 0.0,
    }  # fmt: skip
    return settings.model_copy(update=changes)


@contextmanager
def _warehouse(url: str) -> Iterator[Engine]:
    engine = connect(url)
    upgrade(engine)
    tables = read_movielens()
    items, users = (tables[name].slice(0, most) for name, most in (("items", _ITEMS), ("users", _USERS)))
    ratings = tables["ratings"]
    met = pc.and_(pc.is_in(ratings["item_id"], items["item_id"]), pc.is_in(ratings["user_id"], users["user_id"]))
    import_tables(engine, {"items": items, "users": users, "ratings": ratings.filter(met)})
    try:
        yield engine
    finally:
        engine.dispose()


def _program(name: str) -> list[str]:
    return [sys.executable, "-m", f"bench.{name}"]


def _kept(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"warehouse_url"}, exclude_defaults=True)


# Refreshes


def _refreshes(
    settings: Settings, url: str, engine: Engine, started: float, ended: threading.Event, tally: _Tally
) -> None:
    number = 0
    while not ended.is_set():
        number += 1
        try:
            _alter(engine, number)
            said = _refresh(settings, url, number, tally)
        except Exception as error:  # noqa: BLE001  whatever it is, it is counted
            said = repr(error)
        if said:
            tally.error("failed_refreshes", said)
        else:
            tally.counts["refreshes"] += 1
            tally.refreshed_at.append(time.monotonic() - started)


def _alter(engine: Engine, number: int) -> None:
    """Other rows each time; how many there are stays the same."""
    with engine.begin() as connection:
        for table, key, change in (
            ("items", "item_id", "title = regexp_replace(title, ' #[0-9]+$', '') || ' #' || CAST(:number AS text)"),
            ("users", "user_id", "age = age % 90 + 1"),
        ):
            connection.execute(
                text(
                    f"UPDATE source.{table} SET {change}, updated_at = now() WHERE {key} IN "  # noqa: S608
                    f"(SELECT {key} FROM source.{table} ORDER BY md5({key} || CAST(:number AS text)) LIMIT :most)"
                ),
                {"number": str(number), "most": _ALTERED[table]},
            )


def _refresh(settings: Settings, url: str, number: int, tally: _Tally) -> str | None:
    """One refresh in a process of its own; what it complained of, or None."""
    environment = {
        **os.environ,
        **{f"DARE_{name.upper()}": str(value) for name, value in _kept(settings).items()},
        "DARE_WAREHOUSE_URL": url,
    }
    command = [*_program("soak_refresh"), f"soak-{number}"]
    log = settings.data_dir / "logs" / "refresh.log"
    log.parent.mkdir(exist_ok=True)
    with (
        log.open("w") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        tally.refresh_pid = process.pid
        said, _ = process.communicate()
        tally.refresh_pid = None
    if process.returncode:
        return " ".join(log.read_text("utf-8", "replace").splitlines()[-3:])
    tally.counts["pools_built_again"] += int(said.splitlines()[-1])
    return None


# The publisher and the second engine


def _ask(
    ask: Callable[[Mapping[str, Any]], dict[str, Any]],
    question: Mapping[str, Any],
    failure: str,
    ended: threading.Event,
    tally: _Tally,
    note: Callable[[_Tally, dict[str, Any]], None],
) -> None:
    """Ask a process over and over, and note its answers and what it complains of."""
    while not ended.is_set():
        try:
            said = ask(question)
        except DareError as error:
            tally.error(failure, error)
            return
        if "error" in said:
            tally.error(failure, said["error"])
        else:
            note(tally, said)


def _note_follow(tally: _Tally, said: dict[str, Any]) -> None:
    tally.versions.add(said["version"])
    tally.counts["texts_compared"] += said["texts"]
    if said["different"]:
        tally.error("texts_different", said["different"])


def _note_publication(tally: _Tally, said: dict[str, Any]) -> None:
    tally.counts["publications"] += said["published"]
    tally.counts["publications_lost"] += said["lost"]


# Readers


def _reader(url: str, number: int, ended: threading.Event, tally: _Tally) -> Callable[[], None]:
    """A reader: one connection, one query after the other; after an error a new connection."""
    chance = random.Random(number)  # noqa: S311  no secret

    def read() -> None:
        while not ended.is_set():
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("SET ROLE dare_reader")
                    while not ended.wait(chance.uniform(0, 2 * _PAUSE)):
                        ids = {"item": str(chance.randint(1, _ITEMS)), "user": str(chance.randint(1, _USERS))}
                        query = chance.choice(list(_QUERIES))
                        began = time.perf_counter()
                        connection.execute(_QUERIES[query], ids).fetchall()
                        seconds = time.perf_counter() - began
                        tally.latencies.append(seconds)
                        tally.recent.append(seconds)
            except Exception as error:  # noqa: BLE001  whatever it is, it is counted
                tally.error("failed_queries", repr(error))

    return read


# Samples


def _samples(
    settings: Settings,
    engine: Engine,
    watched: Mapping[str, int],
    started: float,
    seconds: float,
    tally: _Tally,
    on_progress: OnProgress,
) -> Iterator[Sample]:
    server = int((settings.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    told = 0.0
    while (now := time.monotonic() - started) < seconds:
        memory: dict[str, float] = {}
        files: dict[str, int] = {}
        for name, pid in {**watched, "refresh": tally.refresh_pid, "server": server}.items():
            together = _tree(pid) if name in ("refresh", "server") else [psutil.Process(pid)]
            memory[name], files[name] = _memory(together, own=name == "server"), _open_files(together)
        with engine.connect() as connection:
            connections: int = connection.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ).scalar_one()
        recent, tally.recent = tally.recent, []
        yield Sample(round(now, 1), memory, files, connections, *_quantiles(recent))
        if now - told >= 60:
            told = now
            on_progress(f"{now / 60:.0f} min: {_told(tally)}")
        time.sleep(max(0.1, min(_SAMPLE, seconds / 10)))


def _told(tally: _Tally) -> str:
    failed = sum(count for name, count in tally.counts.items() if name.startswith("failed"))
    return (
        f"{len(tally.latencies)} queries, {tally.counts['refreshes']} refreshes, "
        f"{tally.counts['publications']} publications, {failed} failures"
    )


def _tree(pid: int | None) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        if pid is not None:
            root = psutil.Process(pid)
            return [root, *root.children(recursive=True)]
    return []


def _memory(processes: Sequence[psutil.Process], own: bool) -> float:
    """MB that are resident; ``own``: without what is shared, which every server process would count again."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().uss if own else process.memory_info().rss
    return round(total / 1e6, 1)


def _open_files(processes: Sequence[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.num_fds()
    return total


def _quantiles(seconds: Sequence[float] | NDArray[np.float32]) -> tuple[float | None, float | None]:
    """The median and the 95th percentile in milliseconds."""
    if not len(seconds):
        return None, None
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return round(float(p50), 1), round(float(p95), 1)


def _figures(samples: Sequence[Sample], tally: _Tally, readers: int) -> dict[str, Any]:
    latencies = np.frombuffer(tally.latencies, np.float32) if tally.latencies else np.empty(0, np.float32)
    third = len(latencies) // 3
    first, last = _quantiles(latencies[:third]), _quantiles(latencies[-third:] if third else latencies)
    at = [sample.at for sample in samples]
    lasting = [name for name in samples[0].memory if name != "refresh"]
    return {
        "minutes": round(at[-1] / 60, 1),
        "readers": readers,
        **{name: tally.counts[name] for name in ("failed_queries", "failed_refreshes", "failed_publications")},
        "failed_follows": tally.counts["failed_follows"],
        "errors": tally.errors,
        "queries": len(latencies),
        "refreshes": tally.counts["refreshes"],
        "publications": tally.counts["publications"],
        "publications_lost": tally.counts["publications_lost"],
        "pools_built_again": tally.counts["pools_built_again"],
        "versions_followed": len(tally.versions),
        "texts_compared": tally.counts["texts_compared"],
        "texts_different": tally.counts["texts_different"],
        "p50_ms_first_third": first[0],
        "p50_ms_last_third": last[0],
        "p95_ms_first_third": first[1],
        "p95_ms_last_third": last[1],
        "growth": {
            "memory_mb": {name: growth(at, [sample.memory[name] for sample in samples]) for name in lasting},
            "open_files": {name: growth(at, [sample.files[name] for sample in samples]) for name in lasting},
            "connections": growth(at, [sample.connections for sample in samples]),
        },
        "refreshed_at": [round(moment, 1) for moment in tally.refreshed_at],
        "samples": [vars(sample) for sample in samples],
    }


def draw_soak(result: Mapping[str, Any], path: Path) -> None:
    """Memory, open files, connections and latency over time; ticks below mark the ends of refreshes.

    Args:
        result: of :func:`bench_soak`.
        path: file to write; the suffix says in which format.
    """
    from matplotlib.figure import Figure

    from dare_core.reports.figures import save_figure

    samples = result["samples"]
    minutes = [sample["at"] / 60 for sample in samples]
    figure = Figure(figsize=(10, 9), layout="constrained")
    memory, files, connections, latency = figure.subplots(4, 1, sharex=True)
    for name in samples[0]["memory"]:
        style = {"linewidth": 0.8, "linestyle": ":"} if name == "refresh" else {"linewidth": 1.4}
        memory.plot(minutes, [sample["memory"][name] for sample in samples], label=name, **style)
        files.plot(minutes, [sample["files"][name] for sample in samples], label=name, **style)
    connections.plot(minutes, [sample["connections"] for sample in samples], color="#444444")
    for name in ("p50", "p95"):
        latency.plot(minutes, [sample[name] for sample in samples], label=name)
    for axes, label in ((memory, "memory, MB"), (files, "open files"), (connections, "connections"), (latency, "ms")):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    memory.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    latency.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    refreshed = [moment / 60 for moment in result["refreshed_at"]]
    latency.plot(refreshed, [0] * len(refreshed), "|", color="#444444", markersize=8)
    latency.set_xlabel("minutes")
    save_figure(figure, path)


def answer_questions(answer: Callable[[Settings, str], Callable[[], dict[str, Any]]]) -> None:
    """The program of a process that is asked: sets itself up by the first question, then answers one line to each.

    Args:
        answer: makes the answering function of settings and the warehouse's URL.
    """
    from dare_core.config.settings import load_settings

    answers: Callable[[], dict[str, Any]] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if answers is None:
                answers = answer(load_settings(**question["settings"], warehouse_url=question["url"]), question["url"])
            said = answers()
        except Exception as error:  # noqa: BLE001  the asker counts it
            said = {"error": repr(error)}
        print(json.dumps(said), flush=True)
