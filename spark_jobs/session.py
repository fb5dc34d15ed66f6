"""The Spark session of every program here, and what a program prints."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any, Final

from pyspark import SparkContext
from pyspark.sql import SparkSession

from dare_core.errors import DareError
from dare_core.sources.spark_submit import LOCAL_JAVA, STACK
from dare_core.storage import credentials
from dare_core.storage.beside import beside

#: What the programs' correctness rests on, wherever they run. Arrow reads Spark's default INT96 times as nanoseconds;
#: PostgreSQL tells columns apart by case.
_REQUIRED: Final = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.caseSensitive": "true",
    # Sources: times in nanoseconds can be read as numbers at least; tables in any encoding.
    "spark.sql.legacy.parquet.nanosAsLong": "true",
    "spark.sql.legacy.javaCharsets": "true",
}

#: Seconds between two looks at how far a program has come.
_PROGRESS_SECONDS: Final = 5.0

#: What the program is at.
_doing: Final = ["starting"]


def open_session() -> SparkSession:
    """The running session, or a new one: as ``spark-submit`` configured it, else local on two cores.

    Side effect: Python workers run this interpreter (``PYSPARK_PYTHON``) unless the variable is set.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.config("spark.python.daemon.module", "spark_jobs.worker_daemon")
    for key, value in _REQUIRED.items():
        builder = builder.config(key, value)
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit sets it; without it nobody has chosen a master
        builder = builder.master("local[2]").config("spark.ui.enabled", "false")
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        builder = builder.config("spark.driver.extraJavaOptions", f"{LOCAL_JAVA} {STACK}")
    spark = builder.getOrCreate()
    context = spark.sparkContext
    context.setLogLevel("ERROR")
    # Executors' Python opens the storage. Here the variables go to it with each task: Spark's settings, which would
    # pass them too, are shown on its pages and in its logs.
    context.environment.update(credentials.variables())
    given = context.getConf()
    if given.get("spark.master", "").startswith("local") and not given.contains("spark.sql.shuffle.partitions"):
        # The default, 200, makes tasks that take longer to start than to run.
        spark.conf.set("spark.sql.shuffle.partitions", context.defaultParallelism)
    return spark


def doing(spark: SparkSession, what: str) -> None:
    """Name what comes now, for progress lines and Spark's own pages."""
    _doing[0] = what
    spark.sparkContext.setJobDescription(what)


def run(program: Callable[[SparkSession], Mapping[str, Any]]) -> int:
    """Run a program in a session of its own and return its exit status.

    Prints the result as one JSON line, last on stdout. A :class:`DareError` becomes one line on stderr and status 2.
    While it runs, lines on stderr tell of its page (``application:``) and of its stages (``progress:``).
    """
    spark = open_session()
    try:
        with _progress(spark.sparkContext):
            result = program(spark)
    except DareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        spark.stop()
    print(json.dumps(result))
    return 0


@contextmanager
def _progress(context: SparkContext) -> Iterator[None]:
    where = f" at {context.uiWebUrl}" if context.uiWebUrl else ""
    print(f"application: {context.applicationId}{where}", file=sys.stderr, flush=True)

    def tell(ended: Event) -> None:
        told = ""
        while not ended.wait(_PROGRESS_SECONDS):
            if (now := f"{_doing[0]}{_stages(context)}") != told:
                told = now
                print(f"progress: {now}", file=sys.stderr, flush=True)

    with beside("progress", tell):
        yield


def _stages(context: SparkContext) -> str:
    """How far the stages that run have come."""
    tracker = context.statusTracker()
    found = [(number, tracker.getStageInfo(number)) for number in sorted(tracker.getActiveStageIds())]
    told = [f"stage {number}: {info.numCompletedTasks} of {info.numTasks} tasks" for number, info in found if info]
    return f" ({', '.join(told)})" if told else ""
