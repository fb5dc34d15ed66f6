"""CSV tables as frames of text: each file by its own header, and what is not as it should be said by name."""

import codecs
import csv
import io
import sys
from collections.abc import Sequence
from functools import reduce
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql.types import BooleanType, StringType, StructField, StructType

from dare_core.config.domains import CsvFormat
from dare_core.errors import SourceError
from spark_jobs.column_values import column
from spark_jobs.files_of_tables import Files

#: Bytes of a file in which its header is looked for.
_BEGINNING: Final = 1 << 18
#: Characters of a value that an error shows.
_SHOWN: Final = 60
#: Encodings in which every byte is a character, or a line's bytes tell nothing.
_UNCHECKED: Final = ("iso8859", "latin", "utf-16", "utf-32", "cp437", "cp850")


def read_csv(
    spark: SparkSession, path: str, written: CsvFormat, columns: Sequence[str], ids: Sequence[str]
) -> DataFrame:
    """The table at a path; the header of each file says which of its fields are which column.

    Files without a byte are passed over. Of lines with bytes that are no text in the encoding, one line on stderr
    tells by file; the bytes are read as U+FFFD.

    Args:
        spark: the session.
        path: of a file, or a folder of them.
        written: how.
        columns: those that are needed.
        ids: of these, those that are read as they stand in the names of folders: ``user_id=0101`` is 0101.

    Raises:
        AnalysisException: there is nothing.
        SourceError: a file has one of the columns twice, or lacks one that another has; no file has a header.
    """
    files = Files.at(spark, path)
    headers = {file: header for file in files.paths if (header := _header(files, file, written))}
    if not headers:
        raise SourceError(f"{path} has no header line: a CSV table begins with the names of its columns")
    everywhere = {name for header in headers.values() for name in header if name in columns}
    by_header: dict[tuple[str, ...], list[str]] = {}
    for file, header in headers.items():
        for name in everywhere:
            if header.count(name) > 1:
                raise SourceError(f"{file}: the header has column {name!r} {header.count(name)} times")
            if name not in header:
                raise SourceError(f"{file}: no column {name!r}, which other files of {path} have")
        by_header.setdefault(tuple(header), []).append(file)
    _tell_of_undecodable(files, list(headers), written.encoding)
    frames = [_frame(files, names, paths, written, ids) for names, paths in by_header.items()]
    if len(frames) == 1:
        return frames[0]
    wanted = [name for name in columns if name in frames[0].columns]
    return reduce(lambda one, other: one.unionByName(other), [frame.select(*map(column, wanted)) for frame in frames])


def unmistaken(written: CsvFormat, name: str, values: Column) -> Column:
    """Values of a column, an error where one tells that quotes were escaped with a backslash, as Spark writes them."""
    if written.escape is not None:
        return values
    hint = "if a backslash stands before quotes, set source.csv.escape = '\\', else source.csv.escape = '\"'"
    told = sf.lit(f"column {name!r} holds a backslash before a quote; {hint}: ")
    shown = sf.substring(sf.translate(values, "\r\n", "  "), 1, _SHOWN)
    return sf.when(sf.contains(values, sf.lit('\\"')), sf.raise_error(sf.concat(told, shown))).otherwise(values)


def _header(files: Files, path: str, written: CsvFormat) -> list[str]:
    """The names of a file's columns; empty: it holds nothing."""
    text = files.beginning(path, _BEGINNING).decode(written.encoding, "replace").removeprefix("\ufeff")
    escape = None if written.escape in (None, written.quote) else written.escape
    rows = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=written.separator,
        quotechar=written.quote,
        escapechar=escape,
        doublequote=escape is None,
    )
    header = next((row for row in rows if row), [])
    return [name or f"_c{place}" for place, name in enumerate(header)]


def _frame(
    files: Files, names: Sequence[str], paths: Sequence[str], written: CsvFormat, ids: Sequence[str]
) -> DataFrame:
    # A name that comes twice is of a column that nobody asked for.
    fields = [name if name not in names[:place] else f"{name}#{place}" for place, name in enumerate(names)]
    fields += [name for name in files.partition_columns(ids) if name not in fields]
    reader = files.spark.read.schema(StructType([StructField(name, StringType()) for name in fields]))
    reader = reader.options(
        header=True,
        sep=written.separator,
        quote=written.quote,
        escape=written.escape or written.quote,
        encoding=_java_name(written.encoding),
        multiLine=True,
        enforceSchema=True,
        columnPruning=False,  # a row with a field too many would pass where its last column is not needed
        mode="FAILFAST",
    )
    return files.load(reader, "csv", paths)


def _java_name(encoding: str) -> str:
    """Python's name of an encoding as Java knows it."""
    return encoding.upper().replace("UTF-16-", "UTF-16").replace("UTF-32-", "UTF-32").replace("ISO8859-", "ISO-8859-")


def _tell_of_undecodable(files: Files, paths: Sequence[str], encoding: str) -> None:
    if encoding.startswith(_UNCHECKED):
        return
    is_text = sf.is_valid_utf8("value") if encoding == "utf-8" else _decodable(encoding)(sf.col("value").cast("binary"))
    lines = files.spark.read.text(list(paths)).where(~is_text).groupBy(sf.input_file_name().alias("file")).count()
    for row in lines.collect():
        file = unquote(row["file"])
        numbered = files.spark.read.text(file).select(is_text.alias("is_text")).rdd.zipWithIndex()
        [(_, first)] = numbered.filter(lambda numbered: not numbered[0]["is_text"]).take(1)
        print(
            f"warning: {file}: {row['count']} lines hold bytes that are no {encoding}, line {first + 1} first; these "
            "are read as U+FFFD; set source.csv.encoding to what the file is written in",
            file=sys.stderr,
        )


def _decodable(encoding: str) -> Any:
    def decodable(lines: pa.Array) -> pa.Array:
        return pa.array([_decodes(line, encoding) for line in lines.to_pylist()], pa.bool_())

    return sf.arrow_udf(decodable, BooleanType())


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        codecs.decode(line, encoding)
    except UnicodeDecodeError:
        return False
    return True
