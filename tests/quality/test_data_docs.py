"""Great Expectations' results and pages, in a local folder and in a store that is reached by URL."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd  # type: ignore[import-untyped]
import pytest

from dare_core.quality import data_docs
from dare_core.quality.whole_files import WholeFiles
from dare_core.storage.atomic import write_atomically
from dare_core.storage.locations import Location, files_below, location, read_bytes, remove_folder

STATIC = 20


@pytest.fixture(params=["local", "remote"])
def docs_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    root = tmp_path if request.param == "local" else location(f"memory://{uuid.uuid4().hex}")
    yield root / "data_docs"
    remove_folder(root)


def check(docs_dir: Location, run_id: str, most: int = 1) -> bool:
    rules = [gxe.ExpectColumnValuesToBeBetween(column="lost", max_value=most, meta={"rule": "lost"})]
    frame = pd.DataFrame({"lost": [0, 1], "shard": ["a", "b"]})
    return bool(data_docs.check("texts", frame, rules, docs_dir, run_id, ("shard",)).success)


def names(docs_dir: Location) -> list[str]:
    """Results and pages, without the moment of the check."""
    parts = [file.path.parts[len(docs_dir.parts) :] for file in files_below(docs_dir)]
    return sorted("/".join((*part[:3], part[4])) for part in parts if len(part) == 5 and part[0] != "static")


def index(docs_dir: Location) -> str:
    return read_bytes(data_docs.index(docs_dir)).decode()


def test_a_check_leaves_a_result_a_page_the_list_of_runs_and_what_the_pages_look_like(docs_dir: Location) -> None:
    assert check(docs_dir, "monday")
    assert names(docs_dir) == ["results/texts/monday/pandas-texts.json", "validations/texts/monday/pandas-texts.html"]
    page = data_docs.newest_page(docs_dir, "texts", "monday")
    assert page is not None
    assert b"monday" in read_bytes(docs_dir / page)
    assert page in index(docs_dir)
    assert len(files_below(docs_dir / "static")) == STATIC
    assert data_docs.newest_page(docs_dir, "texts", "tuesday") is None


def test_a_check_again_replaces_the_result_of_its_run_and_no_others_and_no_styles(docs_dir: Location) -> None:
    check(docs_dir, "monday")
    styles = files_below(docs_dir / "static")
    check(docs_dir, "tuesday")
    first = data_docs.newest_page(docs_dir, "texts", "monday")
    assert not check(docs_dir, "monday", most=0)
    again = data_docs.newest_page(docs_dir, "texts", "monday")
    assert first and again and first != again
    assert len(names(docs_dir)) == 4
    assert first not in index(docs_dir)
    assert again in index(docs_dir)
    assert "tuesday" in index(docs_dir)
    assert files_below(docs_dir / "static") == styles


def test_a_run_that_another_host_checks_meanwhile_keeps_its_page_and_is_listed_by_the_next_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    docs_dir = location(f"memory://{uuid.uuid4().hex}")
    check(docs_dir, "ours")
    elsewhere = {file.path: read_bytes(file.path) for file in files_below(docs_dir) if "static" not in file.path.parts}
    remove_folder(docs_dir)
    list_keys = WholeFiles.list_keys

    def listing(files: WholeFiles, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """Results as they were before the other host's check ended, and pages as they are after it."""
        found = list_keys(files, prefix)
        if files.filepath_suffix == ".json":
            for path, content in elsewhere.items():
                if path.name != "index.html":
                    write_atomically(path, content)
        return [key for key in found if "ours" not in key] if files.filepath_suffix == ".json" else found

    with monkeypatch.context() as patched:
        patched.setattr(WholeFiles, "list_keys", listing)
        check(docs_dir, "theirs")
    assert "ours" not in index(docs_dir)
    assert data_docs.newest_page(docs_dir, "texts", "ours") is not None
    check(docs_dir, "next")
    assert all(f"/{run}/" in index(docs_dir) for run in ("ours", "theirs", "next"))


def test_results_expire_by_when_they_were_written_but_not_those_of_runs_under_way(docs_dir: Location) -> None:
    assert data_docs.expire(docs_dir, 0) == 0
    written = {}
    for suite, run_id in (("texts", "old"), ("texts", "waits"), ("coverage", "old"), ("texts", "young")):
        for kind, suffix in (("results", "json"), ("validations", "html")):
            path = docs_dir / kind / suite / run_id / "20260101T000000.000000Z" / f"pandas-{suite}.{suffix}"
            write_atomically(path, b"{}", durable=False)
            written[run_id] = {file.path: file.written for file in files_below(docs_dir)}[path]
            time.sleep(0.002)
    write_atomically(docs_dir / "results" / ".ge_store_backend_id", b"of release 0.1.0")
    assert data_docs.expire(docs_dir, written["old"] + 1e-6, ("waits",)) == 2
    assert {name.split("/")[2] for name in names(docs_dir)} == {"waits", "young"}
    assert data_docs.expire(docs_dir, written["young"] - 1e-6) == 1
