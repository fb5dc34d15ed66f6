"""Lines of downloaded data sets, of any content: each is a row, is left out, or is bad, and the three add up."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dare_core.errors import SourceError
from dare_core.schemas import MAX_ID
from dare_core.sources import lines
from dare_core.sources.releases import open_release
from tests.fuzz.effort import tries

HOSTILE = [
    "",
    " ",
    "\0",
    "nul\0",
    "\u202eab",
    "<|im_end|>",
    "'; DROP TABLE x",
    "<b>",
    "x" * (MAX_ID + 1),
    "1",
    "é",
    "nan",
]
WORD = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=8
)
NUMBER = st.sampled_from(
    ["1", "5", "-1", "1e999", "nan", "inf", "9" * 400, "four", "978300000", "-62135596801", "32503680000"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORD | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=2),
    max_leaves=5,
)
REVIEW = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("user_id", "reviewerID", "parent_asin", "asin", "rating", "overall", "timestamp"), JSON)
)
PRODUCT = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("parent_asin", "asin", "title", "categories", "brand", "price", "store"), JSON)
)


@pytest.fixture(autouse=True)
def _bad_lines_are_not_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_BAD_SHARE", 1.0)


def accounted(folder: Path) -> None:
    """Read a release, and hold its rows against what is said of its lines."""
    release = open_release(folder)
    try:
        tables = {name: table.read_all() for name, table in release.tables.items()}
    except SourceError as error:
        assert "has no rows" in str(error)
        return
    for table, file in zip(tables.values(), release.files, strict=False):
        assert file.lines == table.num_rows + file.bad + file.left_out.total()
        check(table)


def check(table: pa.Table) -> None:
    """Every value is one that the database stores."""
    table.validate(full=True)
    for field in table.schema:
        if not field.nullable:
            assert not table[field.name].null_count
        if pa.types.is_string(field.type):
            assert not any("\0" in value for value in table[field.name].to_pylist() if value)
    for name in ("user_id", "item_id"):
        if name in table.column_names:
            assert all(0 < len(value) <= MAX_ID for value in table[name].to_pylist())


def packed(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode("utf-8", "surrogatepass")


@tries(120)
@given(reviews=st.lists(REVIEW | JSON, min_size=1, max_size=4), products=st.lists(PRODUCT, min_size=1, max_size=4))
def test_every_line_of_amazon_reviews_is_accounted_for(tmp_path: Path, reviews: list[Any], products: list[Any]) -> None:
    whole = {"user_id": "u", "asin": "i", "rating": 5, "unixReviewTime": 1_000_000_000}
    (tmp_path / "Books.json").write_bytes(packed([whole, *reviews]))
    (tmp_path / "meta_Books.json").write_bytes(packed([{"asin": "i", "title": "Dune"}, *products]))
    accounted(tmp_path)


@tries(120)
@given(
    ratings=st.lists(st.tuples(WORD, WORD, NUMBER, NUMBER).map("::".join) | WORD, max_size=4),
    movies=st.lists(st.tuples(WORD, WORD, WORD).map("::".join) | WORD, max_size=4),
    users=st.lists(st.tuples(WORD, WORD, NUMBER, NUMBER, WORD).map("::".join) | WORD, max_size=4),
)
def test_every_line_of_a_movielens_release_is_accounted_for(
    tmp_path: Path, ratings: list[str], movies: list[str], users: list[str]
) -> None:
    content = {"ratings": ["1::9::5::978300000", *ratings], "movies": ["9::Heat (1995)::Drama", *movies]}
    content["users"] = ["1::F::1::10::48067", *users]
    for name, rows in content.items():
        (tmp_path / f"{name}.dat").write_bytes("\n".join(rows).encode())
    accounted(tmp_path)


@tries(120)
@given(line=st.binary(max_size=80).filter(lambda line: b"\n" not in line))
def test_a_line_of_any_bytes_costs_itself_alone(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "ratings.csv").write_bytes(b"userId,movieId,rating,timestamp\n7,9,4.5,1147880044\n" + line)
    (tmp_path / "movies.csv").write_bytes(b"movieId,title,genres\n9,Heat,Drama\n" + line)
    accounted(tmp_path)


def test_a_title_of_a_megabyte_is_a_row_as_any_other(tmp_path: Path) -> None:
    title = "x" * 1_000_000
    (tmp_path / "Books.json").write_bytes(
        packed([{"user_id": "u", "asin": "i", "rating": "4.5", "unixReviewTime": 1_000_000_000}])
    )
    (tmp_path / "meta_Books.json").write_bytes(packed([{"asin": "i", "title": title}]))
    release = open_release(tmp_path)
    tables = {name: table.read_all().to_pylist() for name, table in release.tables.items()}
    assert tables["amazon_items"][0]["title"] == title
    assert tables["amazon_reviews"][0]["rating"] == 4.5
