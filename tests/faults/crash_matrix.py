"""Break every stage on purpose, run it again, and compare what there is with what an undisturbed run leaves.

    python -m tests.faults.crash_matrix --work DIR --times 20 [--only kill:load …] [--json] [--anew]

One JSON line per try is appended to ``DIR/results.jsonl``; started again, it does the tries that are missing. What is
random in a try, instants as shares of a stage's time, follows from the fault and the try's number alone.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from dare_core.config.settings import Settings
from dare_core.errors import DareError
from dare_core.operations.digest import Row, unfinished
from dare_core.warehouse.connection import clock, connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving, start, stop
from tests.faults import stages
from tests.faults.stages import DEFECT, RUN, STAGES, WELL, Installation, perform
from tests.support.inventory import compare, inventory

ORDER: Final = list(STAGES)
END: Final = "end"
#: Tries of a stage until it must have come through.
_PATIENCE: Final = 4
#: Seconds that a stage may take, on a machine that may be busy with something else for minutes.
_LONGEST: Final = 900
#: Libraries wait for threads that could not be started; whoever watches the process ends it.
_LONGEST_WITHOUT_MEMORY: Final = 60
#: Parts that two runs of one domain share, whoever of them did what.
_SHARED: Final = ("warehouse.entity", "warehouse.knowledge", "warehouse.knowledge_embedding", "warehouse.rendering")
_PRELOADED: Final = [
    "dare_core.stages.order", "dare_core.decoding", "dare_core.embedding.encoder",
    "tests.faults.stages", "transformers", "sentence_transformers", "great_expectations", "pandas",
    "dare_core.quality.whole_files", "great_expectations.expectations", "sklearn",
]  # fmt: skip

_process = multiprocessing.get_context("forkserver")
_process.set_forkserver_preload(_PRELOADED)  # else every stage's process would import it anew, for seconds
Inventory = Mapping[str, Counter[Row]]


@dataclass
class Try:
    """A try, and what was wrong after it: nothing, it is to be hoped.

    Attributes:
        fault: which.
        number: of the try.
        disturbed: whether the fault came before the stage was done.
        ended: how the disturbed process ended: 0 well, 2 with a sentence for the user, -9 killed; 1 is a defect.
        lost: rows missing, by part.
        doubled: rows there besides, by part.
        half_written: whatever else is neither done nor undone, in words.
        said: the disturbed process's last words.
        seconds: that the try took.
    """

    fault: str
    number: int
    disturbed: bool
    ended: int | None
    lost: dict[str, int] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)
    half_written: list[str] = field(default_factory=list)
    said: str = ""
    seconds: float = 0.0


class Matrix:
    """The installation, the states before each stage, and what an undisturbed run leaves.

    Args:
        work: folder for all of it.
        server: settings of the PostgreSQL server.
        server_url: its URL.
    """

    def __init__(self, work: Path, server: Settings, server_url: str) -> None:
        self.installation = Installation(work, server_url)
        self.server = server
        self._durations_file = work / "durations.json"
        self._reference_file = work / "reference.json"

    # The undisturbed run

    def prepare(self) -> None:
        """Do the undisturbed run, unless it was done before."""
        if not self._reference_file.exists():
            installation = self.installation
            installation.create()
            self._done(self.begin(list(STAGES), run_id="first"))
            installation.change_source()
            durations = {}
            for stage in ORDER:
                installation.keep(stage)
                started = time.monotonic()
                self._done(self.begin([stage]))
                durations[stage] = time.monotonic() - started
            installation.keep(END)
            self._durations_file.write_text(json.dumps(durations))
            found = self.inventory()
            if problems := self.unfinished():
                raise RuntimeError(f"the undisturbed run is not whole: {problems}")
            rows = {name: [[r.key.hex(), r.content.hex(), n] for r, n in part.items()] for name, part in found.items()}
            self._reference_file.write_text(json.dumps(rows))
        self.durations: dict[str, float] = json.loads(self._durations_file.read_text())
        self.reference: Inventory = {
            name: Counter({Row(bytes.fromhex(key), bytes.fromhex(content)): n for key, content, n in rows})
            for name, rows in json.loads(self._reference_file.read_text()).items()
        }

    def _done(self, process: BaseProcess) -> None:
        process.join(_LONGEST)
        if process.exitcode != WELL:
            process.kill()
            raise RuntimeError(f"an undisturbed stage ended with {process.exitcode}: {self.last_error()}")

    # What a fault is made of

    def begin(
        self, names: Sequence[str], run_id: str = RUN.run_id, before: Callable[[], None] | None = None
    ) -> BaseProcess:
        """Begin some stages in a process."""
        home, url = str(self.installation.home), self.installation.server_url
        process = _process.Process(target=perform, args=(home, url, list(names), run_id, before))
        process.start()
        return process

    def go_on(self, stage: str, run_id: str = RUN.run_id) -> None:
        """From a stage to the end, each stage again until it comes through.

        Raises:
            RuntimeError: one does not.
        """
        for _ in range(_PATIENCE):
            process = self.begin(
                [name for name in ORDER[ORDER.index(stage) :] if not self._handed_on(name, run_id)], run_id
            )
            process.join(_LONGEST)
            if process.exitcode == WELL:
                return
            process.kill()
        raise RuntimeError(f"does not come through: {self.last_error()}")

    def _handed_on(self, stage: str, run_id: str) -> bool:
        return stages.handed_on(self.installation.settings(), RUN.model_copy(update={"run_id": run_id}), stage).exists()

    def last_error(self) -> str:
        """The last words of the process that failed last."""
        path = self.installation.home / "last_error.txt"
        return path.read_text("utf-8").strip()[-600:] if path.exists() else ""

    def inventory(self) -> Inventory:
        """What there is."""
        with self._warehouse() as engine:
            return inventory(self.installation.settings(), engine)

    def unfinished(self) -> list[str]:
        """What is neither done nor undone."""
        with self._warehouse() as engine:
            return unfinished(self.installation.settings(), engine)

    @contextmanager
    def _warehouse(self) -> Iterator[Any]:
        engine = connect(self.installation.database)
        try:
            yield engine
        finally:
            engine.dispose()

    # A try

    def attempt(self, fault: "Fault", number: int) -> Try:
        """Put the state back, let the fault happen, go on to the end, and compare."""
        chance = random.Random(f"{fault.name} {number}")
        started = time.monotonic()
        self.installation.put_back(fault.stage)
        (self.installation.home / "last_error.txt").unlink(missing_ok=True)
        disturbed, ended = fault.happen(self, fault.stage, chance)
        tried = Try(fault.name, number, disturbed, ended, said=self.last_error()[-200:])
        if ended == DEFECT:
            tried.half_written.append(f"ended with a traceback: {self.last_error()[-300:]}")
        try:
            self.go_on(fault.stage)
            wanted, found = self.reference, self.inventory()
            if fault.shared_only:
                wanted, found = ({n: part for n, part in each.items() if _is_shared(n)} for each in (wanted, found))
            difference = compare(wanted, found)
            tried.lost, tried.doubled = dict(difference.lost), dict(difference.doubled)
            tried.half_written += [f"{count} rows of {name} differ" for name, count in difference.changed.items()]
            tried.half_written += self.unfinished()
        except (DareError, RuntimeError, DBAPIError, OSError) as error:
            tried.half_written.append(f"{type(error).__name__}: {error}")
        tried.seconds = round(time.monotonic() - started, 1)
        return tried


def _is_shared(part: str) -> bool:
    return part in _SHARED or part.startswith("pool.")


# Faults: what happens while a stage runs. Each says whether it came before the stage was done, and how that ended.

Happening = Callable[[Matrix, str, random.Random], tuple[bool, int | None]]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in a stage.

    Attributes:
        name: as it is asked for.
        stage: in which.
        happen: lets it happen.
        shared_only: whether only what runs share can be compared.
        words: for the reader of the table.
    """

    name: str
    stage: str
    happen: Happening
    words: str
    shared_only: bool = False


def _kill(matrix: Matrix, stage: str, chance: random.Random) -> tuple[bool, int | None]:
    began = time.monotonic()
    process = matrix.begin([stage])
    process.join(chance.uniform(0, matrix.durations[stage]))
    if process.exitcode is None:
        _end(process)
    else:  # it is quicker than it was when it was timed
        matrix.durations[stage] = min(matrix.durations[stage], time.monotonic() - began)
    return process.exitcode == -signal.SIGKILL, process.exitcode


def _end(process: BaseProcess) -> None:
    """Kill a stage's process group."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made itself a group yet, or is gone
        process.kill()
    process.join()


def _database_stops(matrix: Matrix, stage: str, chance: random.Random) -> tuple[bool, int | None]:
    process = matrix.begin([stage])
    process.join(chance.uniform(0, matrix.durations[stage]))
    stop(matrix.server)
    time.sleep(chance.uniform(0, 1))
    start(matrix.server)
    process.join(_LONGEST)
    return process.exitcode != WELL, process.exitcode


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _disk_full(matrix: Matrix, stage: str, chance: random.Random) -> tuple[bool, int | None]:
    """No file may become longer than some bytes: what a full disk says at some point of some file."""
    process = matrix.begin([stage], before=partial(_limit, resource.RLIMIT_FSIZE, int(10 ** chance.uniform(1, 4.5))))
    process.join(_LONGEST)
    return process.exitcode != WELL, process.exitcode


def _memory_limit(more: int) -> None:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
        held = int(file.read().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, held + more)


def _memory_full(matrix: Matrix, stage: str, chance: random.Random) -> tuple[bool, int | None]:
    process = matrix.begin([stage], before=partial(_memory_limit, int(chance.uniform(4, 300) * 2**20)))
    process.join(_LONGEST_WITHOUT_MEMORY)
    if process.exitcode is None:
        _end(process)
    # Out of memory may end a process anywhere, and as it likes; what counts is what it leaves.
    return process.exitcode != WELL, None if process.exitcode == DEFECT else process.exitcode


def _two_at_once(matrix: Matrix, stage: str, chance: random.Random) -> tuple[bool, int | None]:
    """Another run of the domain does the same stages meanwhile, from somewhat earlier on."""
    names = ORDER[ORDER.index(stage) :]
    other = matrix.begin(names, run_id="other")
    other.join(chance.uniform(0, matrix.durations[stage]))
    process = matrix.begin(names)
    together = other.exitcode is None
    process.join(2 * _LONGEST)
    other.join(2 * _LONGEST)
    if other.exitcode != WELL:
        matrix.go_on(stage, "other")
    return together, process.exitcode


def _migration(matrix: Matrix, stage: str, chance: random.Random) -> tuple[bool, int | None]:
    """The schema is upgraded meanwhile, its largest table locked as by ALTER TABLE."""
    process = matrix.begin([stage])
    process.join(chance.uniform(0, matrix.durations[stage]))
    disturbed = process.exitcode is None
    engine = connect(matrix.installation.database)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE knowledge.knowledge ADD COLUMN migrated int")
        time.sleep(chance.uniform(0, 1))
        connection.exec_driver_sql("ALTER TABLE knowledge.knowledge DROP COLUMN migrated")
    for _ in range(_PATIENCE):
        try:
            upgrade(engine)
            break
        except DareError:  # the two waited for each other, and the database chose this one to be done again
            continue
    engine.dispose()
    process.join(_LONGEST)
    return disturbed, process.exitcode


def _clock(days: float) -> Happening:
    def happen(matrix: Matrix, stage: str, chance: random.Random) -> tuple[bool, int | None]:
        offset = days * chance.uniform(0.1, 1)
        engine = connect(matrix.installation.database)
        with engine.begin() as connection:
            for statement in _MOVED_CLOCK:
                connection.exec_driver_sql(statement.format(days=offset))
        engine.dispose()
        engine = connect(matrix.installation.database)  # sessions from now on see it
        seen = clock(engine) - datetime.now(UTC)
        engine.dispose()
        process = matrix.begin(ORDER[ORDER.index(stage) :], before=partial(_move_clock, offset))
        process.join(2 * _LONGEST)
        engine = connect(matrix.installation.database)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER DATABASE tried RESET search_path")
            connection.exec_driver_sql("DROP SCHEMA moved CASCADE")
        engine.dispose()
        return abs(seen - timedelta(days=offset)) < timedelta(minutes=1), process.exitcode

    return happen


#: The database's clock, as its sessions from now on see it.
_MOVED_CLOCK: Final = (
    "CREATE SCHEMA moved",
    "CREATE FUNCTION moved.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE "
    "AS $$ SELECT pg_catalog.clock_timestamp() + {days} * interval '1 day' $$",
    "CREATE FUNCTION moved.now() RETURNS timestamptz LANGUAGE sql STABLE "
    "AS $$ SELECT pg_catalog.now() + {days} * interval '1 day' $$",
    "ALTER DATABASE tried SET search_path = moved, pg_catalog, public",
)


def _move_clock(days: float) -> None:
    """Every module of ours sees another time."""
    import datetime as real

    offset = real.timedelta(days=days)

    class _Like(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real.datetime)

    class Moved(real.datetime, metaclass=_Like):
        @classmethod
        def now(cls, tz: real.tzinfo | None = None) -> real.datetime:  # type: ignore[override]
            return real.datetime.now(tz) + offset

    for name, module in list(sys.modules.items()):
        if name.startswith("dare_core") and getattr(module, "datetime", None) is real.datetime:
            module.datetime = Moved  # type: ignore[attr-defined]
    clock = time.time
    time.time = lambda: clock() + offset.total_seconds()


_WRITING: Final = ("plan", "generate", "pool_build")
FAULTS: Final = {
    fault.name: fault
    for fault in (
        *(Fault(f"kill:{stage}", stage, _kill, f"`{stage}` killed (SIGKILL)") for stage in ORDER),
        *(
            Fault(f"database:{stage}", stage, _database_stops, f"PostgreSQL stopped and started during `{stage}`")
            for stage in ("generate", "load", "publish")
        ),
        *(Fault(f"disk:{stage}", stage, _disk_full, f"disk full during `{stage}`") for stage in _WRITING),
        Fault("memory:generate", "generate", _memory_full, "memory full during `generate`"),
        Fault("clock:back", "plan", _clock(-30), "clock set back by up to 30 days, from `plan` on"),
        Fault("clock:forward", "plan", _clock(30), "clock set forward by up to 30 days, from `plan` on"),
        *(
            Fault(f"twice:{stage}", stage, _two_at_once, f"two runs of one domain at once, from `{stage}` on", True)
            for stage in ("pull", "plan")
        ),
        Fault("migration:load", "load", _migration, "schema upgraded during `load`"),
    )
}


# The driver


def read_results(path: Path) -> list[Try]:
    """The tries so far."""
    if not path.exists():
        return []
    return [Try(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def run(work: Path, times: Mapping[str, int], on_try: Callable[[Try], None]) -> None:
    """Do what is missing: every fault until it has happened ``times`` times."""
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o755)
    results = work / "results.jsonl"
    server = Settings(data_dir=work / "server", warehouse_url=None)
    with serving(server):
        url = start(server)
        try:
            matrix = Matrix(work, server, url)
            matrix.prepare()
            for name, wanted in times.items():
                before = [tried for tried in read_results(results) if tried.fault == name]
                happened = sum(tried.disturbed for tried in before)
                number = 1 + max((tried.number for tried in before), default=0)
                while happened < wanted and number <= 3 * wanted + 3:
                    tried = matrix.attempt(FAULTS[name], number)
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(tried)) + "\n")
                    on_try(tried)
                    happened += tried.disturbed
                    number += 1
        finally:
            stop(server)


def table(tries: Sequence[Try]) -> list[tuple[str, int, int, int, int]]:
    """By fault: its name; tries in which it happened; and of those, tries with rows lost, doubled, or else."""
    rows = []
    for name in dict.fromkeys([*FAULTS, *(tried.fault for tried in tries)]):
        mine = [tried for tried in tries if tried.fault == name and tried.disturbed]
        if mine:
            lost, doubled = sum(bool(tried.lost) for tried in mine), sum(bool(tried.doubled) for tried in mine)
            rows.append((name, len(mine), lost, doubled, sum(bool(tried.half_written) for tried in mine)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The program; exit status 1 where anything is lost, doubled or half-written."""
    parser = argparse.ArgumentParser(prog="crash_matrix", description="Break every stage on purpose, and count.")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything, results included")
    parser.add_argument("--times", type=int, default=20, help="of every fault")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--json", action="store_true", help="print the table as one JSON line")
    parser.add_argument("--anew", action="store_true", help="forget what is in the folder")
    given = parser.parse_args(argv)
    work: Path = given.work.resolve()
    if given.anew:
        shutil.rmtree(work, ignore_errors=True)
    run(work, dict.fromkeys(given.only, given.times), lambda tried: print(json.dumps(asdict(tried)), flush=True))
    tries = [tried for tried in read_results(work / "results.jsonl") if tried.fault in given.only]
    rows = table(tries)
    columns = ("times", "lost", "doubled", "half_written")
    if given.json:
        print(json.dumps({name: dict(zip(columns, counts, strict=True)) for name, *counts in rows}))
    else:
        for row in (("fault", *columns), *rows):
            print("{:20}{:>8}{:>8}{:>9}{:>14}".format(*row))
    return int(any(any(counts[1:]) for _, *counts in rows))


if __name__ == "__main__":
    sys.exit(main())
