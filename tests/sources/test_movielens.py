"""MovieLens-100K, read from the wheel."""

from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dare_core.errors import SourceError
from dare_core.sources import movielens
from dare_core.sources.movielens import in_reading_order, read_movielens

_FILES = {
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\ttechnician\t85711\n",
    "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "9\tRock, The\t1996\tAction Thriller\n",
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t9\t3\t881250949\n",
}


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return read_movielens()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of one user, item and rating."""
    for name, content in _FILES.items():
        (tmp_path / f"ml-100k.{name}").write_text(content, "utf-8")
    return tmp_path


def test_the_whole_data_set_is_there(tables: dict[str, pa.Table]) -> None:
    assert {name: table.num_rows for name, table in tables.items()} == {"users": 943, "items": 1682, "ratings": 100_000}
    for table in tables.values():
        table.validate(full=True)
        for field in table.schema:
            assert field.nullable or table[field.name].null_count == 0
    assert pc.min_max(tables["ratings"]["rating"]).as_py() == {"min": 1.0, "max": 5.0}


def test_every_item_has_a_title_genres_and_but_for_one_a_year(tables: dict[str, pa.Table]) -> None:
    items = {row["item_id"]: row for row in tables["items"].to_pylist()}
    assert all(row["title"] and row["genres"] for row in items.values())
    assert [key for key, row in items.items() if row["release_year"] is None] == ["267"]
    assert items["267"]["title"] == "unknown"
    assert items["1412"]["title"] == "Land Before Time III: The Time of the Great Giving"
    assert items["1412"]["release_year"] == 1995
    assert items["1"]["genres"] == ["Animation", "Children's", "Comedy"]
    assert items["1633"]["title"] == "Á köldum klaka (Cold Fever)"


def test_titles_are_in_reading_order(tables: dict[str, pa.Table]) -> None:
    titles = set(tables["items"]["title"].to_pylist())
    assert titles >= {
        "The Rock",
        "The Crow: City of Angels",
        "The Good, The Bad and The Ugly",
        "The Blue Angel (Der Blaue Engel)",
        "Contempt (Le Mépris)",
        "The Star Maker (L'Uomo delle stelle)",
        "L'Enfer",
        "Les Misérables",
        "An American Werewolf in London",
        "Corrina, Corrina",
        "Paris, Texas",
        "Bye Bye, Love",
    }


def test_articles_behind_other_names_come_in_front_of_them() -> None:
    assert in_reading_order("Dust, The (a.k.a. Gates of Dawn, The)") == "The Dust (a.k.a. The Gates of Dawn)"
    assert in_reading_order("Ran (aka Chaos, A)") == "Ran (aka A Chaos)"
    assert in_reading_order("Akas, The (Aka Lake, The)") == "The Akas (Aka The Lake)"


def test_nothing_is_updated_after_its_first_rating(tables: dict[str, pa.Table]) -> None:
    ratings = tables["ratings"]
    for name, key in (("users", "user_id"), ("items", "item_id")):
        joined = ratings.select([key, "rated_at"]).join(tables[name].select([key, "updated_at"]), key)
        assert joined["updated_at"].null_count == 0
        assert pc.all(pc.less_equal(joined["updated_at"], joined["rated_at"])).as_py()


def test_an_item_without_ratings_is_as_old_as_the_first_rating_of_all(folder: Path) -> None:
    with (folder / "ml-100k.item").open("a") as file:
        file.write("10\tUnseen\t1990\tDrama\n")
    first = datetime.fromtimestamp(881250949, UTC)
    assert read_movielens(folder)["items"]["updated_at"].to_pylist() == [first, first]


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("user", "2\told\tF\twriter\t00000", r"ml-100k.user, line 3: .*'old'"),
        ("item", "10\tNo genres", r"ml-100k.item, line 3: 2 fields where the header has 4"),
        ("inter", "1\t9\tgood\t881250949", r"ml-100k.inter, line 3: .*'good'"),
        ("inter", "1\t9\t3\t1e99", r"ml-100k.inter, line 3: "),
    ],
)
def test_a_malformed_row_is_named(folder: Path, name: str, line: str, says: str) -> None:
    with (folder / f"ml-100k.{name}").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(SourceError, match=says):
        read_movielens(folder)


def test_bytes_that_are_no_text_are_named(folder: Path) -> None:
    with (folder / "ml-100k.item").open("ab") as file:
        file.write(b"10\t\xff\xfe\t1990\tDrama\n")
    with pytest.raises(SourceError, match=r"ml-100k.item, line 3: .*utf-8"):
        read_movielens(folder)


def test_another_file_is_refused_by_its_header(folder: Path) -> None:
    (folder / "ml-100k.user").write_text("id,age\n1,24\n")
    with pytest.raises(SourceError, match="line 1: the header lacks user_id, age"):
        read_movielens(folder)
    (folder / "ml-100k.user").write_text(_FILES["user"].splitlines()[0])
    with pytest.raises(SourceError, match="has no rows"):
        read_movielens(folder)


def test_missing_data_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="pip install --no-deps recbole"):
        read_movielens(tmp_path)
    monkeypatch.setattr(movielens, "find_spec", lambda name: find_spec("no_such_package"))
    with pytest.raises(SourceError, match="pip install --no-deps recbole"):
        read_movielens()
