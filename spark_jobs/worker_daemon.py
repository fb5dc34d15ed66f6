"""The process that Spark's Python workers are forked from (``spark.python.daemon.module``), in place of Spark's own.

Most tasks here take milliseconds. Of Spark's own daemon each worker would import anew what the programs need; and at
each task it would read the directories of the archives that Spark puts on the path, a jar of 5,000 entries among them,
and look through all objects for garbage. That took more than half of the workers' time.
"""

import gc
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

#: What functions of the programs import in a worker.
_PRELOADED: Final = (
    "pandas",
    "pyarrow.compute",
    "dare_core.grouping",
    "spark_jobs.postgres_source",
    "spark_jobs.run_tables",
)


def leave_archives_out() -> None:
    """Take the archives inside an installed PySpark off the path: they hold what is installed."""
    installed = PathFinder.find_spec("pyspark", [place for place in sys.path if not Path(place).is_file()])
    if installed is None or installed.origin is None:
        return
    package = Path(installed.origin).resolve().parent
    for place in [place for place in sys.path if package in Path(place).resolve().parents]:
        sys.path.remove(place)
        sys.path_importer_cache.pop(place, None)


def main() -> None:
    """Import what workers need, and fork them until Spark ends."""
    leave_archives_out()
    for name in _PRELOADED:
        import_module(name)
    from pyspark import daemon

    gc.collect()
    gc.freeze()  # a worker looks through what it made itself only
    daemon.manager()


if __name__ == "__main__":
    main()
