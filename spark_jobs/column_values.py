"""How a source column's values are read: ids, times, text, values that mean none."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from pyspark.sql import Column
from pyspark.sql import functions as sf
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    NullType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from dare_core.config.domains import TIME_UNITS, TimeUnit

#: What a column, or the values of a list in it, may hold.
_PLAIN: Final = (NullType, StringType, NumericType, BooleanType, DateType, TimestampType, TimestampNTZType)
#: From here on neighbours of whole numbers are missing in a floating-point column: two ids would be one.
_EXACT: Final = {FloatType: 2.0**24, DoubleType: 2.0**53}
#: A time of day without a date, which Spark takes for one of today.
_DATELESS: Final = r"^\s*T?\d{1,2}:"


def column(name: str) -> Column:
    """The column of exactly this name, dots and backticks included."""
    return sf.col("`" + name.replace("`", "``") + "`")


def is_plain(kind: DataType) -> bool:
    """Whether values of this type can be shown in a prompt."""
    return isinstance(kind.elementType if isinstance(kind, ArrayType) else kind, _PLAIN)


def id_text(kind: DataType, values: Column, refusal: str) -> Column | None:
    """Ids as the source writes them, the same from every type of a number: 101 of 101, 101.000 and 101.0 alike.

    Args:
        kind: the column's.
        values: of the column.
        refusal: what is said of a floating-point value that is no whole number, or too large to be exact.

    Returns:
        The ids, text or whole numbers; None: the type holds no ids.
    """
    if isinstance(kind, FloatType | DoubleType):
        is_exact = (values == sf.floor(values)) & (sf.abs(values) < _EXACT[type(kind)])
        refused = sf.raise_error(sf.concat(sf.lit(refusal), values.cast("string")))
        exact = sf.when(is_exact, values.cast("long").cast("string")).otherwise(refused)
        return sf.when(values.isNotNull() & ~sf.isnan(values), exact)
    if isinstance(kind, DecimalType) and kind.scale > 0:
        return sf.regexp_replace(values.cast("string"), r"\.?0+$", "")
    return values if isinstance(kind, _PLAIN) else None


def moments(kind: DataType, values: Column, unit: TimeUnit | None) -> Column | None:
    """Values of a column that tells when something happened; text stays text, but for a time of day, which is null.

    Args:
        kind: the column's.
        values: of the column.
        unit: of a number, or of text that holds one.

    Returns:
        The times; None: values of this type are none.
    """
    if unit and isinstance(kind, NumericType | StringType):
        microseconds = sf.try_multiply(values.try_cast("decimal(38, 9)"), sf.lit(Decimal(1_000_000) / TIME_UNITS[unit]))
        return sf.timestamp_micros(sf.floor(microseconds).try_cast("long"))
    if isinstance(kind, StringType):
        return sf.when(~values.rlike(_DATELESS), values)
    return values if isinstance(kind, DateType | TimestampType | TimestampNTZType | NullType) else None


def of_nanoseconds(values: Column, is_utc: bool) -> Column:
    """Times that were read as nanoseconds since 1970, down to the microsecond; without a zone where they have none."""
    whole = sf.timestamp_micros(sf.call_function("div", values - sf.pmod(values, sf.lit(1000)), sf.lit(1000)))
    return whole if is_utc else whole.cast("timestamp_ntz")


def legible(kind: DataType, values: Column) -> Column:
    """Values as PostgreSQL and Python can hold them.

    Files and other databases can hold NUL characters, broken UTF-8 and times before the year 1 or after 9999.
    """
    if isinstance(kind, StringType):
        return sf.translate(sf.make_valid_utf8(values), "\0", "")
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, StringType):
        return sf.transform(values, lambda value: legible(kind.elementType, value))
    if isinstance(kind, DateType | TimestampType | TimestampNTZType):
        return in_calendar(values)
    return values


def in_calendar(times: Column) -> Column:
    """Dates or times of the years 1 to 9999; null where they are others, which neither Python nor JSON can hold."""
    return sf.when(sf.year(times).between(1, 9999), times)


def without(kind: DataType, values: Column, none: Sequence[str | int | float]) -> Column:
    """Values without those that mean none: null in their place, and of a list the others."""
    if isinstance(kind, ArrayType):
        return sf.filter(values, lambda value: ~_is_among(kind.elementType, value, none))
    return sf.when(~_is_among(kind, values, none), values)


def _is_among(kind: DataType, value: Column, none: Sequence[str | int | float]) -> Column:
    """Whether a value is one of them; -1 is "-1" and -1.0 too."""
    words = [text.strip() for text in none if isinstance(text, str)]
    numbers = [float(number) for number in none if not isinstance(number, str)]
    found = sf.trim(value.cast("string")).isin(words)
    if numbers and isinstance(kind, NumericType | StringType):
        found = found | sf.coalesce(value.try_cast("double").isin(numbers), sf.lit(False))
    return sf.coalesce(found, sf.lit(False))
