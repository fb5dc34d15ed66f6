import pytest

from dare_airflow.setup import connection_fields, warehouse_url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://reader:p%40ss%2Fword@db.example:5433/shop?sslmode=require",
        "postgresql://postgres@/dare?host=%2Fvar%2Frun%2Fdare&port=5432",
        "postgresql:///dare",
    ],
)
def test_a_connection_gives_back_the_url_that_it_was_made_of(url: str) -> None:
    assert warehouse_url(connection_fields(url)) == url


def test_the_password_stands_in_the_field_that_airflow_encrypts_and_hides() -> None:
    fields = connection_fields("postgresql://reader:p%40ss@db.example/shop?sslmode=require")
    assert fields["password"] == "p@ss"
    assert not any("p@ss" in str(value) for name, value in fields.items() if name != "password")
