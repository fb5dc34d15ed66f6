"""Which rows a pull reads anew, by their times."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column
from pyspark.sql import functions as sf
from pyspark.sql.types import TimestampType

from dare_core.schemas import TIME
from spark_jobs.column_values import column, in_calendar
from spark_jobs.postgres_source import TimeWindow


@dataclass(frozen=True)
class Window:
    """What a pull of one kind sees.

    Attributes:
        since: the watermark, inclusive; None: everything.
        as_of: the latest event seen, inclusive.
        as_read: items and users are taken as they are read, also where they changed after ``as_of``. A row that changes
            all the time would never be taken otherwise.
    """

    since: datetime | None
    as_of: datetime
    as_read: bool

    def of_events(self, name: str) -> TimeWindow:
        """What the source may leave out of a table of events: those from before the watermark's day."""
        return TimeWindow(name, self._day, None)

    def of_rows(self, name: str, whole: bool = False) -> TimeWindow:
        """What the source may leave out of a table of items or users."""
        return TimeWindow(name, None if whole else self._day, None if self.as_read else self.as_of)

    def seen(self, changed: Column) -> Column:
        """Whether a row of items or users is seen at all. What it said before it changed is not known."""
        return sf.lit(True) if self.as_read else changed <= self.as_of

    def happened(self, time: Column) -> Column:
        """Whether an event is seen at all."""
        return time <= self.as_of

    def recent(self, time: Column) -> Column:
        """Whether a time is new since the watermark.

        A time without a clock part, of a column of dates or of a text, stands for any moment of its day: the
        watermark's day is new as a whole.
        """
        return sf.lit(True) if self.since is None else (time >= self.since) | (time == sf.lit(self._day))

    @property
    def _day(self) -> datetime | None:
        return self.since and self.since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def time_of(name: str) -> Column:
    """The column as a time; null where it cannot be read as one (a file may hold text)."""
    return in_calendar(column(name).try_cast("timestamp"))


def _read_by_now(times: pa.Array) -> pa.Array:
    times, now = times.cast(TIME), pa.scalar(datetime.now(UTC), TIME)
    return pc.if_else(pc.less(times, now), times, now)


#: Times, none of them later than now: data that was read cannot be newer than that, whatever its row says.
read_by_now = sf.arrow_udf(_read_by_now, TimestampType())
