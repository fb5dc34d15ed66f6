"""``dare bench soak``: everything at once, for as long as asked."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow.compute as pc
from sqlalchemy import Engine

from bench.soak.figures import figures_of
from bench.soak.processes import keep_asking, kept, program
from bench.soak.readers import ITEMS, USERS, reader
from bench.soak.refreshes import keep_refreshing, refresh_once
from bench.soak.samples import take_samples
from bench.soak.tally import Tally
from dare_core.config.settings import Settings
from dare_core.engines.peer_process import running
from dare_core.errors import DareError
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving

OnProgress = Callable[[str], None]

_NEW_TOKENS: Final = 32


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
        ``growth`` of each process's memory and open files, and of connections (see :func:`.figures.growth`); and
        ``samples``.

    Raises:
        DareError: the first refresh fails, or a process does not start.
    """
    here = _prepared(settings)
    tally = Tally()
    with serving(here) as url, _warehouse(url) as engine:
        on_progress("the first refresh")
        if said := refresh_once(here, url, 0, tally):
            raise DareError(f"the first refresh failed: {said}")
        ended, started = threading.Event(), time.monotonic()
        logs = here.data_dir / "logs"
        with (
            running("the second engine", program("follower"), logs / "follower.log") as follower,
            running("the publisher", program("publisher"), logs / "publisher.log") as publisher,
        ):
            question = {"settings": kept(here), "url": url}
            work = [
                lambda: keep_refreshing(here, url, engine, started, ended, tally),
                lambda: keep_asking(follower.ask, question, "failed_follows", ended, tally, _note_follow),
                lambda: keep_asking(publisher.ask, question, "failed_publications", ended, tally, _note_publication),
                *(reader(url, number, ended, tally) for number in range(readers)),
            ]
            threads = [threading.Thread(target=one, daemon=True) for one in work]
            for thread in threads:
                thread.start()
            watched = {"readers": os.getpid(), "second engine": follower.pid, "publisher": publisher.pid}
            samples = list(take_samples(here, engine, watched, started, minutes * 60, tally, on_progress))
            ended.set()
            for thread in threads:
                thread.join()
    for path in here.data_dir.iterdir():
        if path != logs and not path.is_symlink():  # they say more of a failure than its one line
            shutil.rmtree(path)
    return figures_of(samples, tally, readers)


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
    items, users = (tables[name].slice(0, most) for name, most in (("items", ITEMS), ("users", USERS)))
    ratings = tables["ratings"]
    met = pc.and_(pc.is_in(ratings["item_id"], items["item_id"]), pc.is_in(ratings["user_id"], users["user_id"]))
    import_tables(engine, {"items": items, "users": users, "ratings": ratings.filter(met)})
    try:
        yield engine
    finally:
        engine.dispose()


def _note_follow(tally: Tally, said: dict[str, Any]) -> None:
    tally.versions.add(said["version"])
    tally.counts["texts_compared"] += said["texts"]
    if said["different"]:
        tally.error("texts_different", said["different"])


def _note_publication(tally: Tally, said: dict[str, Any]) -> None:
    tally.counts["publications"] += said["published"]
    tally.counts["publications_lost"] += said["lost"]
