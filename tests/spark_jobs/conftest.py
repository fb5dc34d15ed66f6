"""A database of a small shop for all tests of the Spark programs."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from dare_core.config.domains import Domain, read_domain

#: Text that breaks careless quoting, joining and logging.
ODD_TITLE = 'Say "hi", it\'s \\ {curly} | pipe\n\ttab \x01 \U0001f600 \u2028 $1 日本'

DOMAIN = """
[source]
{source}

[source.items]
table = "items"
id = "item_id"
updated_at = "updated_at"
title = "title"
attributes = ["release_year", "genres", "price"]
group = "genres"

[source.users]
table = "users"
id = "user_id"
updated_at = "updated_at"
attributes = ["age", "occupation"]
group = "occupation"

[source.interactions]
table = "ratings"
user = "user_id"
item = "item_id"
value = "rating"
time = "rated_at"

[knowledge]
framework = "kar"
noun = "movie"
plural = "movies"
history = "viewing"
value_unit = "stars"
factors = ["genre"]
max_history = 3
"""

TABLES = """
CREATE SCHEMA shop;
CREATE TABLE shop.items (item_id int, title text, release_year smallint, genres text[], price numeric(8, 2),
                         updated_at timestamptz);
CREATE TABLE shop.users (user_id bigint, age int, occupation varchar(40), updated_at timestamp);
CREATE TABLE shop.ratings (user_id bigint, item_id int, rating real, rated_at timestamptz);
"""


def day(number: int) -> datetime:
    """A day of January 2024."""
    return datetime(2024, 1, number, tzinfo=UTC)


ITEMS = [
    (1, ODD_TITLE, 1995, ["Drama", "Comedy"], 9.5, day(1)),
    (2, "Plain", None, [], None, day(5)),
    (3, "Later", 2024, ["Action"], 5, day(20)),
]
USERS = [
    (1, 24, "writer", day(1)),
    (2, None, None, day(8)),
    (3, 30, "artist", day(25)),  # came after every interaction
    (4, 40, "artist", day(26)),  # changed late, acted early
]
RATINGS = [
    (1, 1, 4, day(2)),
    (1, 2, 3.5, day(3)),
    (1, 3, 5, day(3)),
    (1, 1, 2, day(10)),
    (1, 2, 1, day(21)),
    (2, 99, 1, day(4)),  # an item that is in no table
    (77, 1, 1, day(4)),  # a user who is in no table
    (4, 2, 5, day(6)),
]


@dataclass(frozen=True)
class Shop:
    """A database of its own with the tables above, in schema ``shop``."""

    url: str
    domain_file: Path
    odd_title: str = ODD_TITLE

    @property
    def domain(self) -> Domain:
        return read_domain(self.domain_file)

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(statement)

    def write_domain(self, source: str) -> Domain:
        """The same domain with other lines under ``[source]``."""
        self.domain_file.write_text(DOMAIN.format(source=source), "utf-8")
        return self.domain


@pytest.fixture
def domain_text() -> str:
    """A domain file, ``{source}`` in it the lines under ``[source]``."""
    return DOMAIN


@pytest.fixture
def shop(warehouse_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(warehouse_url, tmp_path / "shop.toml")
    shop.write_domain('format = "postgres"\nschema = "shop"')
    with psycopg.connect(warehouse_url) as connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS shop CASCADE")
        cursor.execute(TABLES)
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.executemany("INSERT INTO shop.items VALUES (%s, %s, %s, %s, %s, %s)", ITEMS)
        cursor.executemany("INSERT INTO shop.users VALUES (%s, %s, %s, %s)", USERS)
        cursor.executemany("INSERT INTO shop.ratings VALUES (%s, %s, %s, %s)", RATINGS)
    yield shop
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("DROP SCHEMA shop CASCADE")
