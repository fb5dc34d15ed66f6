import gc
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from spark_jobs.worker_daemon import leave_archives_out


def test_workers_have_their_imports_and_no_archive_on_their_path(spark: SparkSession) -> None:
    names = ("pandas", "spark_jobs.postgres_source")
    [(path, there, frozen)] = (
        spark.sparkContext.parallelize([0], 1)
        .map(lambda _: (list(sys.path), [name in sys.modules for name in names], gc.get_freeze_count()))
        .collect()
    )
    assert not [place for place in path if Path(place).is_file()]
    assert there == [True, True]
    assert frozen > 0


@pytest.mark.parametrize("installed", [True, False])
def test_archives_are_left_out_only_where_they_lie_in_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    package = tmp_path / "site-packages" / "pyspark"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    archive, users = package / "lib.zip", tmp_path / "users.zip"
    for file in (archive, users):
        file.touch()
    path = [str(archive), str(users), *([str(package.parent)] if installed else [])]
    monkeypatch.setattr(sys, "path", path)
    leave_archives_out()
    assert (str(archive) in path) != installed
    assert str(users) in path
