"""Connections and their errors."""

import pytest
from pgvector import Vector
from sqlalchemy import Engine

from dare_core.errors import DareError, SettingError, WarehouseError
from dare_core.warehouse.connection import connect


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_usual_scheme_connects(server_url: str, scheme: str) -> None:
    engine = connect(server_url.replace("postgresql", scheme, 1))
    assert engine.driver == "psycopg"
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:s3cret@db/shop",
        "s3cret",
        "postgresql+asyncpg://u:s3cret@db/shop",
        "postgresql://u:half@s3cret@db/shop",
        "postgresql://u:s3cret@db:port/shop",
    ],
)
def test_another_kind_of_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SettingError, match="DARE_WAREHOUSE_URL") as raised:
        connect(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@127.0.0.1:1/shop",
        "postgresql://u@/shop?host=/no/such/folder&password=s3cret",
        "postgresql://u:s3cret@/shop?host=/tmp&sslmode=nonsense",
    ],
)
def test_an_unreachable_server_is_one_line_without_the_password(url: str) -> None:
    with pytest.raises(WarehouseError, match="cannot be reached") as raised:
        connect(url)
    assert "s3cret" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_database_that_is_not_there_is_named(server_url: str) -> None:
    with pytest.raises(DareError, match='database "nowhere" does not exist'):
        connect(server_url.replace("/dare?", "/nowhere?"))


def test_sessions_are_in_utc_and_know_vectors(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW timezone").scalar_one() == "UTC"
        assert connection.exec_driver_sql("SELECT '[1,2]'::vector").scalar_one() == Vector([1.0, 2.0])
