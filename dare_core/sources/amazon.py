"""Amazon reviews in JSON lines, of 2018 and of 2023: a file of reviews and one of products (``meta_…``).

2018: ``reviewerID``, ``asin``, ``overall``, ``unixReviewTime``; 2023: ``user_id``, ``parent_asin``, ``rating``,
``timestamp`` in milliseconds. Of users nothing else is known than when they came.
"""

import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from dare_core.errors import SourceError
from dare_core.schemas import TIME
from dare_core.sources.importer import described_stream
from dare_core.sources.lines import FirstSeen, LeftOutError, LineFile, identifier, in_batches, legible, microseconds
from dare_core.sources.titles import plain_title

#: What a file's name ends with.
SUFFIXES: Final = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_PRICE: Final = re.compile(r"\$?\s*(\d[\d,]*(?:\.\d+)?)")

_USERS: Final = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("active_since", pa.int32(), nullable=False),
        pa.field("updated_at", TIME, nullable=False),
    ]
)
_ITEMS: Final = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("brand", pa.string()),
        pa.field("category", pa.string()),
        pa.field("categories", pa.list_(pa.string()), nullable=False),
        pa.field("price", pa.float64()),
        pa.field("updated_at", TIME, nullable=False),
    ]
)
_REVIEWS: Final = pa.schema(
    [
        pa.field("review_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("rating", pa.float64(), nullable=False),
        pa.field("reviewed_at", TIME, nullable=False),
    ]
)


def read_amazon(folder: Path) -> tuple[dict[str, pa.RecordBatchReader], list[LineFile]]:
    """The tables ``amazon_reviews``, ``amazon_items`` and ``amazon_users``, to be read in this order, and their files.

    Products without a title, and further lines about a product, make no row. ``category`` is the one below the
    department. ``updated_at`` of a user or product is its first review; without any, the first review of all.

    Raises:
        SourceError: the folder has not one file of each sort; while the tables are read, see :meth:`LineFile.batches`.
    """
    reviews, meta = _files(folder)
    seen = FirstSeen()
    numbers = count(1)
    products = set[str]()

    def review(line: bytes) -> Sequence[Any]:
        row = _object(line)
        user, item = _id(row, "user_id", "reviewerID"), _id(row, "parent_asin", "asin")
        rating = float(_first(row, "rating", "overall"))
        if not math.isfinite(rating):
            raise ValueError(f"{rating} is no rating")
        in_milliseconds = row.get("timestamp") is not None
        time = float(_first(row, "timestamp", "unixReviewTime"))
        moment = microseconds(time / 1000 if in_milliseconds else time)
        seen.note(user, item, moment)
        return next(numbers), user, item, rating, moment

    def product(line: bytes) -> Sequence[Any]:
        row = _object(line)
        item = _id(row, "parent_asin", "asin")
        given = _words(row.get("title"))
        if given is None:
            raise LeftOutError("no title")
        title = plain_title(given)
        if title is None:
            raise LeftOutError("a page's code in place of a title")
        if item in products:
            raise LeftOutError("another line about the same product")
        products.add(item)
        path = _path(row.get("categories") or row.get("category"))
        category = path[1] if len(path) > 1 else path[0] if path else _words(row.get("main_category"))
        brand = _words(row.get("brand")) or _words(row.get("store"))
        return item, title, brand, category, path, _price(row.get("price")), seen.of_item(item)

    told = f"of Amazon reviews, {reviews.path.name}"
    return {
        "amazon_reviews": described_stream(
            _REVIEWS, reviews.batches(_REVIEWS, review), f"reviews {told}", ["review_id"], ["reviewed_at", "user_id"]
        ),
        "amazon_items": described_stream(
            _ITEMS, meta.batches(_ITEMS, product), f"products {told}", ["item_id"], ["updated_at"]
        ),
        "amazon_users": described_stream(_USERS, _met(seen), f"users {told}", ["user_id"], ["updated_at"]),
    }, [reviews, meta]


def _files(folder: Path) -> tuple[LineFile, LineFile]:
    files = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    sorts = {
        "reviews": [path for path in files if not path.name.startswith("meta_")],
        "products (meta_…)": [path for path in files if path.name.startswith("meta_")],
    }
    for sort, found in sorts.items():
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise SourceError(f"{folder}: one file of {sort} is needed, and there are: {names}")
    reviews, meta = (LineFile(path) for [path] in sorts.values())
    return reviews, meta


def _met(seen: FirstSeen) -> Iterator[pa.RecordBatch]:
    rows = [(user, datetime.fromtimestamp(moment / 1_000_000, UTC).year, moment) for user, moment in seen.users.items()]
    yield from in_batches(rows, _USERS)


def _object(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    return row


def _first(row: dict[str, Any], *names: str) -> Any:
    for name in names:
        if row.get(name) not in (None, ""):
            if isinstance(row[name], str | int | float):
                return row[name]
            raise ValueError(f"{name} is a {type(row[name]).__name__}")
    raise ValueError(f"neither {' nor '.join(names)}")


def _id(row: dict[str, Any], *names: str) -> str:
    return identifier(str(_first(row, *names)))


def _words(value: object) -> str | None:
    """Text with HTML's character references resolved, on one line; None where there is none."""
    return " ".join(legible(html.unescape(value)).split()) or None if isinstance(value, str) else None


def _path(value: object) -> list[str]:
    """From the department down; the oldest files hold several paths, of which the first is taken."""
    if not isinstance(value, list):
        return []
    if value and isinstance(value[0], list):
        value = value[0]
    return [words for words in map(_words, value) if words]


def _price(value: object) -> float | None:
    """A price in the files' currency; None where there is none, or a range or words."""
    if isinstance(value, str):
        found = _PRICE.fullmatch(value.strip())
        value = float(found[1].replace(",", "")) if found else None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
