"""The session that every program opens."""

import os
from collections.abc import Iterator

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from spark_jobs.session import open_session


def test_the_storage_s_variables_reach_executors_and_are_none_of_spark_s_settings(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        list(batches)
        yield pa.record_batch({"value": [os.environ.get("AWS_SECRET_ACCESS_KEY")]})

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the store")
    context, partitions = spark.sparkContext, spark.conf.get("spark.sql.shuffle.partitions")
    before = dict(context.environment)
    try:
        assert open_session() is spark
        assert spark.range(1).coalesce(1).mapInArrow(told, "value string").collect()[0]["value"] == "of the store"
        assert "of the store" not in str(context.getConf().getAll())
    finally:
        context.environment.clear()
        context.environment.update(before)
        spark.conf.set("spark.sql.shuffle.partitions", partitions)
