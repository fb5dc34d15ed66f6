"""Where a table of files lies: its files, and what is in them before Spark reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Files:
    """The files of one table, a file or a folder of them.

    Attributes:
        spark: the session, whose file systems are asked.
        path: of the file or folder.
        paths: of its files, those that Spark passes over not among them.
    """

    spark: SparkSession
    path: str
    paths: Sequence[str]

    @classmethod
    def at(cls, spark: SparkSession, path: str) -> "Files":
        """The files at a path.

        Raises:
            AnalysisException: there is nothing.
        """
        return cls(spark, path, [unquote(file) for file in spark.read.text(path).inputFiles()])

    def partition_columns(self, names: Sequence[str]) -> list[str]:
        """Which columns stand in the names of folders (``user_id=0101/``)."""
        return [name for name in names if any(f"/{name}=" in path for path in self.paths[:1])]

    def beginning(self, path: str, size: int) -> bytes:
        """The first bytes of a file, unpacked where it is packed."""
        jvm: Any = self.spark._jvm
        conf = self.spark._jsc.hadoopConfiguration()
        where = jvm.org.apache.hadoop.fs.Path(path)
        stream = where.getFileSystem(conf).open(where)
        try:
            codec = jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(conf).getCodec(where)
            return bytes((codec.createInputStream(stream) if codec else stream).readNBytes(size))
        finally:
            stream.close()

    def load(self, reader: Any, kind: str, paths: Sequence[str]) -> DataFrame:
        """Some of the files; the names of folders below :attr:`path` are columns of them too."""
        if len(paths) == len(self.paths):
            return reader.format(kind).load(self.path)
        return reader.option("basePath", self.path).format(kind).load(list(paths))
