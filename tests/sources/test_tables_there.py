"""What is found out about a source before Spark starts."""

from pathlib import Path

import psycopg
import pytest

from dare_core.config.domains import Domain, read_domain
from dare_core.config.settings import PROJECT_DIR
from dare_core.errors import DareError
from dare_core.sources.tables_there import require_tables

TABLES = """
CREATE SCHEMA IF NOT EXISTS source;
CREATE TABLE source.items (item_id int, title text, release_year int, genres text[], updated_at timestamptz);
CREATE TABLE source.users (user_id int, age int, gender text, occupation text, updated_at timestamptz);
CREATE TABLE source.ratings (user_id int, item_id int, rating int, rated_at timestamptz);
"""


def domain(tmp_path: Path, *changes: tuple[str, str]) -> Domain:
    text = (PROJECT_DIR / "config" / "movies.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "movies.toml").write_text(text)
    return read_domain(tmp_path / "movies.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'table = "ratings"',
            'table = "rating"',
            "source table 'rating' .* cannot be read: relation .* does not exist",
        ),
        (
            'time = "rated_at"',
            'time = "at"',
            r"no column 'at' \(source.interactions.time\); there are: user_id, item_id",
        ),
        ('group = "release_year"', 'group = "genre"', "source.items.group: 'genre' is no attribute"),
        ('title = "title"', "", "source.items.title is missing"),
    ],
)
def test_a_table_column_or_group_that_is_not_there_is_named(
    warehouse_url: str, tmp_path: Path, old: str, new: str, said: str
) -> None:
    with psycopg.connect(warehouse_url) as connection:
        connection.execute(TABLES)
    require_tables(domain(tmp_path), warehouse_url)
    with pytest.raises(DareError, match=said):
        require_tables(domain(tmp_path, (old, new)), warehouse_url)


def test_a_file_that_is_not_there_is_named_and_a_silent_server_is_left_to_spark(tmp_path: Path) -> None:
    files = domain(tmp_path, ('format = "postgres"', f'format = "csv"\nlocation = "{tmp_path}"'))
    for name in ("items", "users.csv"):
        (tmp_path / name).mkdir()
    with pytest.raises(DareError, match=r"source table 'ratings' \(source.interactions.table\): there is neither"):
        require_tables(files, "")
    (tmp_path / "ratings.csv").touch()
    require_tables(files, "")
    require_tables(domain(tmp_path), "postgresql://127.0.0.1:1/nothing")
