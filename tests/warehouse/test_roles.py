"""Roles and databases on a server that asks for passwords: the embedded one with a TCP port."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from dare_airflow.local.processes import free_port
from dare_core.config.settings import Settings
from dare_core.errors import SettingError
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import require_current, upgrade
from dare_core.warehouse.roles import create_roles
from dare_core.warehouse.server import serving_on_loopback
from scripts.make_secrets import make_secrets


@pytest.fixture(scope="module")
def administrator() -> Iterator[str]:
    with TemporaryDirectory(prefix="dare-roles-") as folder:  # pytest's own is closed to PostgreSQL's system user
        settings = Settings(data_dir=Path(folder), warehouse_url=None)
        with serving_on_loopback(settings, free_port(), "pa%s'word") as url:
            yield url


@pytest.fixture
def secrets(administrator: str, tmp_path: Path) -> Path:
    """Secrets for that server, made anew for each test."""
    port = administrator.rpartition("/")[0].rpartition(":")[2]
    make_secrets(tmp_path / "secrets", postgres=f"127.0.0.1:{port}", redis="127.0.0.1:1")
    (tmp_path / "secrets" / "postgres_password").write_text("pa%s'word")
    return tmp_path / "secrets"


def owner(secrets: Path, name: str) -> str:
    return (secrets / name).read_text("ascii").replace("+psycopg", "")


def test_nobody_enters_over_tcp_without_the_password(administrator: str) -> None:
    with psycopg.connect(administrator) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("postgres",)
    place = administrator.rpartition("@")[2]
    for login in ("postgres", "postgres:wrong"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://{login}@{place}", passfile="/dev/null")


def test_each_role_owns_its_database_and_the_warehouse_has_vectors(secrets: Path) -> None:
    assert create_roles(secrets) == ["airflow", "dare"]
    for name in ("airflow_database_url", "dare_warehouse_url"):
        with psycopg.connect(owner(secrets, name)) as connection:
            connection.execute("CREATE SCHEMA of_mine")  # refused to any but the database's owner
            connection.rollback()
    with psycopg.connect(owner(secrets, "dare_warehouse_url")) as connection:
        assert connection.execute("SELECT '[1,2]'::vector <-> '[1,3]'::vector").fetchone() == (1.0,)
        access = connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'dare_%' ORDER BY 1").fetchall()
        assert access == [("dare_loader",), ("dare_reader",)]


def test_the_warehouses_role_upgrades_without_being_an_administrator(secrets: Path) -> None:
    create_roles(secrets)
    engine = connect(owner(secrets, "dare_warehouse_url"))
    upgrade(engine)
    require_current(engine)
    engine.dispose()


def test_no_role_is_an_administrator(secrets: Path, administrator: str) -> None:
    create_roles(secrets)
    privileges = "SELECT bool_or(rolsuper OR rolcreaterole OR rolcreatedb) FROM pg_roles WHERE rolname = ANY (%s)"
    with psycopg.connect(administrator) as connection:
        assert connection.execute(privileges, (["airflow", "dare"],)).fetchone() == (False,)


def test_run_again_with_other_secrets_it_changes_the_passwords(secrets: Path, tmp_path: Path) -> None:
    create_roles(secrets)
    before = owner(secrets, "dare_warehouse_url")
    other = before.replace(before.split(":")[2].split("@")[0], "another")
    (secrets / "dare_warehouse_url").write_text(other)
    create_roles(secrets)
    psycopg.connect(other).close()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(before)


def test_a_missing_secret_is_named(secrets: Path) -> None:
    (secrets / "airflow_database_url").unlink()
    with pytest.raises(SettingError, match="airflow_database_url"):
        create_roles(secrets)
