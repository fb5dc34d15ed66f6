"""The embedded server's life, across processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from dare_core.config.settings import Settings
from dare_core.errors import WarehouseError
from dare_core.warehouse import server

_HOLD = """
import sys
from pathlib import Path
from dare_core.config.settings import Settings
from dare_core.warehouse.server import serving
with serving(Settings(data_dir=Path(sys.argv[1]), warehouse_url=None)) as url:
    print(url, flush=True)
    sys.stdin.readline()
"""
_START = """
import sys
from pathlib import Path
from dare_core.config.settings import Settings
from dare_core.warehouse.server import start
print(start(Settings(data_dir=Path(sys.argv[1]), warehouse_url=None)))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cluster for all tests: creating it is what takes long."""
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture
def settings(home: Path) -> Iterator[Settings]:
    settings = Settings(data_dir=home, warehouse_url=None)
    yield settings
    server.stop(settings)


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url):
            return True
    except psycopg.OperationalError:
        return False


def _hold(home: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _url(holder: "subprocess.Popen[str]") -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


def _release(holder: "subprocess.Popen[str]") -> None:
    holder.communicate("\n", timeout=60)


def test_a_started_server_outlives_its_process_and_stops_from_any_other(settings: Settings) -> None:
    url = subprocess.run(
        [sys.executable, "-c", _START, str(settings.data_dir)], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert _answers(url)
    with server.serving(settings) as same:
        assert same == url
    assert _answers(url), "serving must not stop a server that was asked to stay"
    assert server.stop(settings)
    assert not _answers(url)
    assert not server.stop(settings)


def test_the_last_of_two_processes_stops_the_server(settings: Settings) -> None:
    first, second = _hold(settings.data_dir), _hold(settings.data_dir)  # both at once
    url = _url(first)
    assert _url(second) == url
    _release(first)
    assert _answers(url), "the second still uses it"
    _release(second)
    assert not _answers(url)


def test_an_interrupt_and_an_error_stop_the_server(settings: Settings) -> None:
    holder = _hold(settings.data_dir)
    url = _url(holder)
    holder.send_signal(signal.SIGINT)
    holder.wait(60)
    assert not _answers(url)
    with pytest.raises(ZeroDivisionError), server.serving(settings) as url:
        1 / 0  # noqa: B018
    assert not _answers(url)


@pytest.mark.parametrize("seconds", [0.05, 0.2])
def test_an_interrupt_while_the_server_starts_leaves_nothing_running(settings: Settings, seconds: float) -> None:
    holder = _hold(settings.data_dir)
    lock = settings.data_dir / "postgres" / "users"
    lock.unlink(missing_ok=True)
    while not lock.exists() and holder.poll() is None:  # from here on it is inside serving
        time.sleep(0.01)
    time.sleep(seconds)
    holder.send_signal(signal.SIGINT)
    holder.wait(60)
    assert not (settings.data_dir / "postgres" / "data" / "postmaster.pid").exists()


def test_a_killed_user_does_not_keep_the_server_up(settings: Settings) -> None:
    holder = _hold(settings.data_dir)
    url = _url(holder)
    holder.kill()
    holder.wait()
    assert _answers(url), "nobody was left to stop it"
    with server.serving(settings):
        pass
    assert not _answers(url)


def test_a_killed_server_starts_again(settings: Settings) -> None:
    url = server.start(settings)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    process = psutil.Process(int((settings.data_dir / "postgres/data/postmaster.pid").read_text().split()[0]))
    process.kill()
    process.wait(30)
    with server.serving(settings) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (1,)
    assert not _answers(url), "start had asked for the server that died to stay, not for this one"


def test_it_listens_on_a_private_socket_alone_and_has_room_for_airflow(settings: Settings) -> None:
    with server.serving(settings) as url, psycopg.connect(url) as connection:
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone() for name in ("listen_addresses", "max_connections")
        }
        assert shown == {"listen_addresses": ("",), "max_connections": ("200",)}
        socket = Path(str(connection.info.host))
        assert socket.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_for_root_nothing_above_the_data_folder_is_opened_to_others(settings: Settings, home: Path) -> None:
    home.chmod(0o700)
    before = {folder: folder.stat().st_mode for folder in (home, *home.parents)}
    with server.serving(settings) as url:
        assert _answers(url)
    assert {folder: folder.stat().st_mode for folder in before} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_for_root_programs_in_a_private_folder_are_copied_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "home" / "postgresql" / "bin"
    programs.mkdir(parents=True)
    (programs / "initdb").touch(0o755)
    (tmp_path / "home").chmod(0o700)
    monkeypatch.setattr(server, "_PROGRAMS", programs)
    monkeypatch.setattr(server, "_PUBLIC", tmp_path / "public")
    for _ in range(2):
        copy = server._programs_for_everybody()
        assert copy.is_relative_to(tmp_path / "public") and (copy / "initdb").stat().st_mode & 0o005 == 0o005
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(server, "_PUBLIC", Path("/proc/nowhere"))
    with pytest.raises(WarehouseError, match="which is root's alone; they cannot be copied"):
        server._programs_for_everybody()


def test_long_paths_with_spaces_and_a_locale_that_is_not_installed_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANG", "xx_YY.UTF-8")
    monkeypatch.setenv("PGPORT", "1")
    settings = Settings(data_dir=tmp_path / "a folder" / ("long" * 30), warehouse_url=None)
    with server.serving(settings) as url:
        assert url.startswith("postgresql://postgres@/dare?host=")
        assert _answers(url)
        other = server.database_url(url, "airflow")
        assert server.database_url(url, "airflow") == other
        with psycopg.connect(other) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("airflow",)


def test_a_warehouse_url_is_used_as_it_is(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "unused", warehouse_url="postgresql://reader@db/shop")
    with server.serving(settings) as url:
        assert url == "postgresql://reader@db/shop"
    assert not settings.data_dir.exists()


def test_a_cluster_that_cannot_start_says_why(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, warehouse_url=None)
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True, mode=0o700)
    (data / "PG_VERSION").write_text("9")
    with pytest.raises(WarehouseError, match="does not start") as raised:
        server.start(settings)
    assert "\n" not in str(raised.value)
