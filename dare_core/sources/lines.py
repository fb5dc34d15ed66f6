"""Large files of one row a line, plain or gzip, read in batches. Lines that cannot be read are counted and named."""

import codecs
import gzip
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from dare_core.errors import SourceError
from dare_core.schemas import MAX_ID

log = logging.getLogger(__name__)

#: A file with a larger share of lines that cannot be read is not what it should be, and nothing is imported.
MAX_BAD_SHARE: Final = 0.01

_ROWS_PER_BATCH: Final = 20_000
_NAMED: Final = 3
#: 2200-01-01; what lies behind it is in another unit, or no time.
_LATEST: Final = 7_258_118_400


class LeftOutError(Exception):
    """A line that can be read and makes no row; its text is the reason, in few words."""


@dataclass
class LineFile:
    """A file, and what was found in it so far.

    Attributes:
        path: of the file; ``<path>.gz`` where only that is there.
        lines: that were read, the header not among them.
        bad: of these, lines that could not be read.
        examples: the first of them, with their line and the reason.
        left_out: lines that made no row, by reason.
    """

    path: Path
    lines: int = 0
    bad: int = 0
    examples: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def find(cls, path: Path) -> "LineFile":
        """The file, or its gzip.

        Raises:
            SourceError: neither is there.
        """
        packed = path.with_name(f"{path.name}.gz")
        for candidate in (path, packed):
            if candidate.is_file():
                return cls(candidate)
        raise SourceError(f"{path} is not there, nor {packed.name}; the release is not whole")

    def batches(
        self, schema: pa.Schema, parse: Callable[[bytes], Sequence[Any]], header: bytes | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Rows of ``schema``, in the file's order.

        Args:
            schema: of the rows. A time is given as microseconds since 1970.
            parse: makes a row's values of a line without its end; raises ValueError with the reason where it cannot be
                read, LeftOutError where it makes no row.
            header: the first line, where the file has one.

        Raises:
            SourceError: the file cannot be read on, has another header or no rows, or more than :data:`MAX_BAD_SHARE`
                of its lines are bad; the last is known, and said, when the file was read to its end.
        """
        rows: list[Sequence[Any]] = []
        for number, read in enumerate(self._read(), 1):
            line = read.removeprefix(codecs.BOM_UTF8) if number == 1 else read
            if number == 1 and header is not None:
                if line != header:
                    raise SourceError(f"{self.path}: its first line is not {header.decode()}")
                continue
            self.lines += 1
            try:
                rows.append(parse(line))
            except LeftOutError as reason:
                self.left_out[str(reason)] += 1
            except (ValueError, OverflowError, RecursionError) as error:
                self.bad += 1
                if len(self.examples) < _NAMED:
                    self.examples.append(f"line {number}: {error}")
            if len(rows) == _ROWS_PER_BATCH:
                yield _batch(rows, schema)
                rows = []
        if self.bad > MAX_BAD_SHARE * self.lines:
            raise SourceError(
                f"{self.path}: {self.bad} of {self.lines} lines cannot be read, more than {MAX_BAD_SHARE:.0%}: "
                f"{'; '.join(self.examples)}; nothing was imported"
            )
        if self.lines == self.bad + self.left_out.total():
            raise SourceError(f"{self.path} has no rows")
        if self.bad:
            log.warning("%s: %d lines cannot be read: %s", self.path, self.bad, "; ".join(self.examples))
        if rows:
            yield _batch(rows, schema)

    def _read(self) -> Iterator[bytes]:
        number = 0
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as lines:
                for number, line in enumerate(lines, 1):  # noqa: B007 - for the error
                    yield line.rstrip(b"\r\n")
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{self.path} cannot be read behind line {number}: {error}") from None


def in_batches(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows that are in memory, as batches of ``schema``; taken when they are asked for."""
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        yield _batch(rows[start : start + _ROWS_PER_BATCH], schema)


def _batch(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array(values, of.type) for values, of in zip(zip(*rows, strict=True), schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def legible(value: str) -> str:
    """Text as the database stores it: without NUL characters and white space around it.

    Raises:
        ValueError: it holds half of a surrogate pair.
    """
    value.encode()
    return value.replace("\0", "").strip()


def identifier(value: str) -> str:
    """A user's or item's id, as :func:`legible`.

    Raises:
        ValueError: it is blank, or too long for a key.
    """
    text = legible(value)
    if not text:
        raise ValueError("an id is blank")
    if len(text) > MAX_ID:
        raise ValueError(f"an id has {len(text)} characters, more than {MAX_ID}")
    return text


def microseconds(seconds: float) -> int:
    """Seconds since 1970 as the times of a batch.

    Raises:
        ValueError: that is no time of the years 1970 to 2199.
    """
    if not 0 <= seconds < _LATEST:
        raise ValueError(f"{seconds} is no time in seconds")
    return round(seconds * 1_000_000)


@dataclass
class FirstSeen:
    """When users and items were first met, which interactions tell while they are read; in microseconds."""

    users: dict[str, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    earliest: int = _LATEST * 1_000_000

    def note(self, user: str, item: str, moment: int) -> None:
        """An interaction."""
        if moment < self.users.setdefault(user, moment):
            self.users[user] = moment
        if moment < self.items.setdefault(item, moment):
            self.items[item] = moment
        self.earliest = min(self.earliest, moment)

    def of_item(self, item: str) -> int:
        """An item's first interaction; without any, the first of all."""
        return self.items.get(item, self.earliest)

    def of_user(self, user: str) -> int:
        """As :meth:`of_item`."""
        return self.users.get(user, self.earliest)
