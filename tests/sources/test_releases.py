"""Downloaded data sets: small files of ours in the formats of MovieLens and of Amazon reviews."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from dare_core.config.domains import read_domain
from dare_core.config.settings import PROJECT_DIR
from dare_core.errors import SourceError
from dare_core.knowledge.prompts import render
from dare_core.sources import lines
from dare_core.sources.importer import import_tables
from dare_core.sources.releases import Release, open_release

#: Ratings by which a file holds many lines, so that a bad one is a small share.
MANY = 200


def read(release: Release) -> dict[str, list[dict[str, Any]]]:
    return {name: table.read_all().to_pylist() for name, table in release.tables.items()}


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.fixture
def dat(tmp_path: Path) -> Path:
    """As 1M: Latin-1, users; line 3 of the ratings is broken."""
    ratings = [f"{1 + n % 2}::{9 if n < 2 else 100 + n}::{1 + n % 5}::{978300000 + n}" for n in range(MANY)]
    ratings.insert(2, "1::9::four::978300000")
    (tmp_path / "ratings.dat").write_text("\r\n".join(ratings), "latin-1")
    (tmp_path / "movies.dat").write_bytes(
        b"9::Cit\xe9 des enfants perdus, La (1995)::Adventure|Sci-Fi\n10::Untitled::Drama\n"
    )
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    return tmp_path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """As 25M: no users, and ratings that are packed."""
    with gzip.open(tmp_path / "ratings.csv.gz", "wt") as file:
        file.write("userId,movieId,rating,timestamp\n7,9,4.5,1147880044\n7,10,0.5,1147880000\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n9,"American President, The (1995)",Comedy|Drama\n'
        '10,"A ""quoted"" film ",(no genres listed)\n'
    )
    return tmp_path


def test_a_dat_release_is_read_and_its_broken_line_named(dat: Path, caplog: pytest.LogCaptureFixture) -> None:
    release = open_release(dat)
    tables = read(release)
    assert len(tables["ratings"]) == MANY
    assert tables["ratings"][0] == {
        "user_id": "1", "item_id": "9", "rating": 1.0, "rated_at": moment(978300000),
    }  # fmt: skip
    assert tables["items"] == [
        {
            "item_id": "9", "title": "La Cité des enfants perdus", "release_year": 1995,
            "genres": ["Adventure", "Sci-Fi"], "updated_at": moment(978300000),
        },
        {
            "item_id": "10", "title": "Untitled", "release_year": None, "genres": ["Drama"],
            "updated_at": moment(978300000),
        },
    ]  # fmt: skip
    assert tables["users"][1] == {
        "user_id": "2", "age": "56 and over", "gender": "M", "occupation": "self-employed", "zip_code": "70072",
        "updated_at": moment(978300001),
    }  # fmt: skip
    assert next((file.path.name, file.lines, file.bad) for file in release.files) == ("ratings.dat", MANY + 1, 1)
    assert "ratings.dat: 1 lines cannot be read: line 3: could not convert string to float: 'four'" in caplog.text


def test_a_csv_release_has_users_of_whom_only_ratings_are_known(csv: Path) -> None:
    tables = read(open_release(csv))
    assert [(row["title"], row["release_year"], row["genres"]) for row in tables["items"]] == [
        ("The American President", 1995, ["Comedy", "Drama"]),
        ('A "quoted" film', None, []),
    ]
    assert tables["users"] == [
        {
            "user_id": "7", "age": None, "gender": None, "occupation": None, "zip_code": None,
            "updated_at": moment(1147880000),
        }
    ]  # fmt: skip


def test_a_release_is_imported_in_batches_with_the_columns_that_the_domain_names(
    dat: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_ROWS_PER_BATCH", 64)
    counts = import_tables(engine, open_release(dat).tables)
    assert counts == {"ratings": MANY, "items": 2, "users": 2}
    source = read_domain(PROJECT_DIR / "config" / "movies.toml").source
    with engine.connect() as connection:
        for spec in (source.items, source.users):
            wanted = ", ".join([spec.id, spec.updated_at, *spec.attributes])
            assert len(connection.exec_driver_sql(f"SELECT {wanted} FROM source.{spec.table}").all()) == 2
        [(rows, last)] = connection.exec_driver_sql("SELECT count(*), max(rated_at) FROM source.ratings")
    assert (rows, last) == (MANY, moment(978300000 + MANY - 1))


def test_a_file_with_too_many_bad_lines_imports_nothing(dat: Path, engine: Engine) -> None:
    import_tables(engine, open_release(dat).tables)
    with (dat / "ratings.dat").open("a") as file:
        file.write("\n1:9\n\n1::2::3::99999999999\n1::2::6::978300000")
    with pytest.raises(SourceError, match=r"ratings.dat: 5 of 205 lines .* 1%: line 3: .*; line 202: 1 fields, not 4"):
        import_tables(engine, open_release(dat).tables)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM source.ratings").scalar() == MANY


def reviews(folder: Path, **rows: list[dict[str, Any]]) -> Path:
    for name, objects in rows.items():
        with gzip.open(folder / f"{name}.json.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in objects)
    return folder


OLD = {
    "Books_5": [
        {"overall": 5.0, "reviewerID": "A1", "asin": "B1", "unixReviewTime": 1252800000, "reviewText": "Good."},
        {"overall": 2.0, "reviewerID": "A1", "asin": "B2", "unixReviewTime": 1000000000},
    ],
    "meta_Books": [
        {"asin": "B1", "title": "Tom &amp; Jerry", "brand": "", "category": ["Books", "Comics"], "price": "$1,012.50"},
        {"asin": "B1", "title": "Again", "category": []},
        {"asin": "B3", "title": " "},
        {"asin": "B5", "title": "var begin = (new Date()).getTime();\n<!-- --> .nav { width: 10px } Lamp"},
        {"asin": "B4", "title": "<b>No</b> category", "categories": [["Books", "Poetry"]], "price": "from $3"},
    ],
}
NEW = {
    "Books": [{"user_id": "A1", "asin": "B9", "parent_asin": "B1", "rating": 5, "timestamp": 1252800000123}],
    "meta_Books": [{"parent_asin": "B1", "title": "Dune", "main_category": "Books", "store": "Ace", "price": 9.5}],
}


def test_amazon_reviews_of_2018_are_read(tmp_path: Path) -> None:
    release = open_release(reviews(tmp_path, **OLD))
    tables = read(release)
    assert tables["amazon_reviews"][0] == {
        "review_id": 1, "user_id": "A1", "item_id": "B1", "rating": 5.0, "reviewed_at": moment(1252800000),
    }  # fmt: skip
    assert tables["amazon_items"] == [
        {
            "item_id": "B1", "title": "Tom & Jerry", "brand": None, "category": "Comics",
            "categories": ["Books", "Comics"], "price": 1012.5, "updated_at": moment(1252800000),
        },
        {
            "item_id": "B4", "title": "No category", "brand": None, "category": "Poetry",
            "categories": ["Books", "Poetry"], "price": None, "updated_at": moment(1000000000),
        },
    ]  # fmt: skip
    assert tables["amazon_users"] == [{"user_id": "A1", "active_since": 2001, "updated_at": moment(1000000000)}]
    assert release.files[1].left_out == {
        "no title": 1, "a page's code in place of a title": 1, "another line about the same product": 1,
    }  # fmt: skip


def test_amazon_reviews_of_2023_are_read_and_asked_about(tmp_path: Path) -> None:
    tables = read(open_release(reviews(tmp_path, **NEW)))
    assert tables["amazon_reviews"][0]["reviewed_at"] == datetime(2009, 9, 13, 0, 0, 0, 123000, UTC)
    [item], [user] = tables["amazon_items"], tables["amazon_users"]
    assert (item["item_id"], item["brand"], item["category"]) == ("B1", "Ace", "Books")
    domain = read_domain(PROJECT_DIR / "config" / "examples" / "amazon.toml")
    source = domain.source
    for spec, row in ((source.items, item), (source.users, user)):
        assert {spec.id, spec.updated_at, spec.group, *spec.attributes} <= set(row)
    assert {source.interactions.value, source.interactions.time} <= set(tables["amazon_reviews"][0])
    assert '"Dune" (brand Ace; category Books; price 9.5)' in render(domain, "item", item).message
    history = [{"title": "Dune", "value": 5}]
    assert 'A user (active since 2009), whose history is:\n- "Dune": 5 stars' in (
        render(domain, "user", {**user, "history": history}).message
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no release that is known"),
        ({"movies.csv": ""}, r"ratings.csv is not there, nor ratings.csv.gz"),
        ({"movies.csv": "x", "ratings.csv": "a,b\n"}, "its first line is not userId,movieId,rating,timestamp"),
        ({"movies.dat": "x", "ratings.dat": ""}, "ratings.dat has no rows"),
        ({"Books.json": "{}"}, r"one file of products \(meta_…\) is needed, and there are: none"),
        ({"a.json": "", "b.json": "", "meta_a.json": ""}, "one file of reviews is needed, and .*: a.json, b.json"),
        ({"Books.json": "x", "meta_Books.json": ""}, r"Books.json: 1 of 1 lines .*line 1: Expecting value"),
        ({"Books.json.gz": "not packed", "meta_Books.json": ""}, r"cannot be read behind line 0: Not a gzipped file"),
    ],
)  # fmt: skip
def test_what_is_missing_or_another_thing_is_named(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=said):
        read(open_release(tmp_path))


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.zip").touch()
    with pytest.raises(SourceError, match=r"ml-1m.zip is no folder; unpack the release"):
        open_release(tmp_path / "ml-1m.zip")


def test_a_byte_order_mark_before_json_lines_is_passed_over(tmp_path: Path) -> None:
    for path in (folder := reviews(tmp_path, **NEW)).glob("*.gz"):
        path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + gzip.decompress(path.read_bytes())))
    assert read(open_release(folder))["amazon_items"][0]["title"] == "Dune"
