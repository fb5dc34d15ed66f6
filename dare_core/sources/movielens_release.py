"""MovieLens releases as GroupLens publishes them: ``.dat`` (1M, 10M) and ``.csv`` (20M, 25M, 32M, latest).

The tables are those of :mod:`dare_core.sources.movielens`, so that the domain ``movies`` reads them as it is. Only 1M
has users' attributes; elsewhere a user is an id, and the attributes are empty.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from dare_core.sources.importer import described_stream
from dare_core.sources.lines import FirstSeen, LineFile, identifier, in_batches, legible, microseconds
from dare_core.sources.movielens import ITEMS, RATINGS, UPDATED_AT, YEAR_IN_TITLE, in_reading_order

_NO_GENRES: Final = "(no genres listed)"
#: README of 1M: ages are given by the lowest of their group, occupations by number.
_AGES: Final = {
    "1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56 and over",
}  # fmt: skip
_OCCUPATIONS: Final = (
    "other", "academic or educator", "artist", "clerical or administrative", "college or graduate student",
    "customer service", "doctor or health care", "executive or managerial", "farmer", "homemaker", "K-12 student",
    "lawyer", "programmer", "retired", "sales or marketing", "scientist", "self-employed", "technician or engineer",
    "tradesman or craftsman", "unemployed", "writer",
)  # fmt: skip

_USERS: Final = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in ("age", "gender", "occupation", "zip_code")),
        UPDATED_AT,
    ]
)
_ITEMS: Final = ITEMS.append(UPDATED_AT)

_Split = Callable[[bytes], list[str]]


def read_release(folder: Path) -> tuple[dict[str, pa.RecordBatchReader], list[LineFile]]:
    """The tables ``ratings``, ``items`` and ``users``, to be read in this order, and the files they are read from.

    Titles and times of change are made as in :func:`dare_core.sources.movielens.read_movielens`.

    Raises:
        SourceError: a file is missing; while the tables are read, see :meth:`LineFile.batches`.
    """
    is_csv = any(folder.glob("movies.csv*"))
    suffix, split = ("csv", _split_csv) if is_csv else ("dat", _split_dat)
    ratings, movies = (LineFile.find(folder / f"{name}.{suffix}") for name in ("ratings", "movies"))
    users = None if is_csv or not any(folder.glob("users.dat*")) else LineFile.find(folder / "users.dat")
    seen = FirstSeen()

    def rating(line: bytes) -> Sequence[Any]:
        user, item, value, time = _fields(split(line), 4)
        user, item = identifier(user), identifier(item)
        row = user, item, _rating(value), microseconds(int(time))
        seen.note(user, item, row[3])
        return row

    def movie(line: bytes) -> Sequence[Any]:
        item, title, genres = _fields(split(line), 3)
        title = legible(title)
        year = YEAR_IN_TITLE.search(title)
        name = in_reading_order(title[: year.start()] if year else title)
        if not name:
            raise ValueError("no title")
        named = [] if genres == _NO_GENRES else [genre for genre in legible(genres).split("|") if genre]
        item = identifier(item)
        return item, name, int(year[1]) if year else None, named, seen.of_item(item)

    def user(line: bytes) -> Sequence[Any]:
        name, gender, age, occupation, zip_code = _fields(split(line), 5)
        known = occupation.isdecimal() and int(occupation) < len(_OCCUPATIONS)
        if age not in _AGES or not known:
            raise ValueError(f"age {age!r} or occupation {occupation!r} is no code of the release")
        name = identifier(name)
        return name, _AGES[age], legible(gender), _OCCUPATIONS[int(occupation)], legible(zip_code), seen.of_user(name)

    headers = (b"userId,movieId,rating,timestamp", b"movieId,title,genres") if is_csv else (None, None)
    told = f"of MovieLens, {folder.name}"
    people = users.batches(_USERS, user) if users else _met(seen)
    return {
        "ratings": described_stream(
            RATINGS, ratings.batches(RATINGS, rating, headers[0]), f"ratings {told}, up to 5 stars",
            ["user_id", "item_id"], ["rated_at"],
        ),
        "items": described_stream(
            _ITEMS, movies.batches(_ITEMS, movie, headers[1]), f"movies {told}", ["item_id"], ["updated_at"]
        ),
        "users": described_stream(_USERS, people, f"users {told}", ["user_id"], ["updated_at"]),
    }, [file for file in (ratings, movies, users) if file]  # fmt: skip


def _met(seen: FirstSeen) -> Iterator[pa.RecordBatch]:
    """Users of whom only their ratings are known."""
    rows = [(name, None, None, None, None, moment) for name, moment in seen.users.items()]
    yield from in_batches(rows, _USERS)


def _split_dat(line: bytes) -> list[str]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:  # 1M is in Latin-1, 10M in UTF-8
        text = line.decode("latin-1")
    return text.split("::")


def _split_csv(line: bytes) -> list[str]:
    text = line.decode("utf-8")
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _fields(fields: list[str], count: int) -> list[str]:
    if len(fields) != count:
        raise ValueError(f"{len(fields)} fields, not {count}")
    if not all(fields[:2]):
        raise ValueError("one of the first two fields is empty")
    return fields


def _rating(value: str) -> float:
    rating = float(value)
    if not 0 <= rating <= 5:
        raise ValueError(f"{value!r} is no rating of 5 stars")
    return rating
