"""Files on an object store that is real, behind connections that break: whole or not there, and no error in between."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pytest
import s3fs
import yaml

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import InputError, PoolError, StorageError
from dare_core.knowledge import shards, worker
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.requests import Decoding
from dare_core.knowledge.shards import Plan
from dare_core.pools import Pool, PoolStore
from dare_core.schemas import REQUEST
from dare_core.storage import locations
from dare_core.storage.atomic import appearing, write_atomically
from dare_core.storage.files import Files
from dare_core.storage.locations import Location
from dare_core.storage.run_files import (
    read_parquet,
    read_pieces,
    read_table,
    table_files,
    write_json,
    write_manifest,
    write_pieces,
    write_table,
)
from tests.pools.built import add, build, held
from tests.support.fault_proxy import Exchange, Fault, FaultProxy, answers, cut, fault_proxy, shortened, unanswered
from tests.support.object_store import ObjectStore, is_installed, object_store

if TYPE_CHECKING:
    from dare_core.decoding import Result

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not is_installed(), reason="no object store here; scripts/install_object_store.sh installs it"),
]

TABLE = pa.table({"n": pa.array(range(5_000), pa.int64()), "text": [f"text {n}" for n in range(5_000)]})
EVERY = ("GET", "HEAD", "PUT", "DELETE", "POST")
SLOW_DOWN = answers(503, "SlowDown")


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


@pytest.fixture(scope="module")
def running_proxy(store: ObjectStore) -> Iterator[FaultProxy]:
    with fault_proxy(store.endpoint) as proxy, pytest.MonkeyPatch.context() as patched:
        for name, value in store.at(proxy.endpoint).environment.items():
            patched.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # fsspec does not look at the environment twice
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(running_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """What is between the test and the store; breaks nothing yet."""
    running_proxy.mend()
    monkeypatch.setattr(locations, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(locations, "_LONGEST_WAIT", 0.02)
    return running_proxy


@pytest.fixture
def place(store: ObjectStore, proxy: FaultProxy) -> Location:
    """A folder of the test's own."""
    return store.place(uuid4().hex)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "_PATIENCE", 0.05)


def there(place: Location) -> list[str]:
    return [file.path.name for file in locations.files_below(place)]


@pytest.mark.parametrize("fault", [cut(1_000), cut(0), unanswered])
def test_a_put_that_breaks_is_done_again_and_leaves_one_whole_file(
    place: Location, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.breaks("PUT", fault)
    write_table(place / "part.parquet", TABLE)
    assert proxy.methods() == ["PUT", "PUT"]
    assert there(place) == ["part.parquet"]
    assert read_table(place / "part.parquet", TABLE.schema) == TABLE


@pytest.mark.usefixtures("impatient")
def test_a_put_that_keeps_breaking_leaves_nothing_new(place: Location, proxy: FaultProxy) -> None:
    write_json(place / "state.json", "the old one")
    proxy.breaks("PUT", cut(5), None)
    with pytest.raises(StorageError, match=r"state\.json cannot be written"):
        write_json(place / "state.json", "the new one, which is longer")
    with pytest.raises(StorageError):
        write_table(place / "part.parquet", TABLE)
    with pytest.raises(StorageError), appearing(place / "other") as scratch:
        scratch.write_bytes(b"content")
    assert there(place) == ["state.json"]
    assert locations.read_bytes(place / "state.json") == b"the old one"


def test_a_block_that_fails_stores_nothing(place: Location, proxy: FaultProxy) -> None:
    with pytest.raises(ZeroDivisionError), appearing(place / "part") as scratch:
        scratch.write_bytes(b"half")
        raise ZeroDivisionError
    assert proxy.asked == []


@pytest.mark.parametrize("fault", [SLOW_DOWN, answers(500, "InternalError"), answers(429, "Throttled")])
def test_a_store_that_is_busy_for_a_moment_is_asked_again(place: Location, proxy: FaultProxy, fault: Fault) -> None:
    proxy.breaks(EVERY, fault, 3)
    write_table(place / "part.parquet", TABLE)
    write_manifest(place, ["part.parquet"])
    assert read_table(place, TABLE.schema) == TABLE
    assert locations.exists(place / "part.parquet")
    locations.remove(place / "part.parquet")
    assert not locations.exists(place / "part.parquet")
    locations.remove_folder(place)
    assert there(place) == []


@pytest.mark.parametrize("fault", [SLOW_DOWN, Exchange.hang_up], ids=["busy", "silent"])
@pytest.mark.usefixtures("impatient")
def test_a_store_that_stays_down_is_one_error_that_says_where_and_what_to_do(
    place: Location, proxy: FaultProxy, fault: Fault
) -> None:
    write_json(place / "state.json", "{}")
    proxy.breaks(EVERY, fault, None)
    for asked in (
        lambda: locations.read_bytes(place / "state.json"),
        lambda: locations.exists(place / "state.json"),
        lambda: locations.is_folder(place),
        lambda: locations.matching(place),
        lambda: locations.files_in(place),
        lambda: locations.files_below(place),
        lambda: locations.remove(place / "state.json"),
        lambda: locations.remove_folder(place),
        lambda: write_json(place / "state.json", "{}"),
        lambda: table_files(place),
        lambda: list(read_pieces(place, TABLE.schema)),
    ):
        with pytest.raises(StorageError, match=rf"{place}.*storage is up.*run the same again"):
            asked()


def test_nobody_waits_for_a_store_that_will_not_say_otherwise(
    place: Location, proxy: FaultProxy, store: ObjectStore
) -> None:
    proxy.breaks("PUT", answers(403, "AccessDenied"), None)
    with pytest.raises(StorageError, match="credentials are right"):
        write_json(place / "state.json", "{}")
    assert proxy.methods() == ["PUT"]
    proxy.mend()
    with pytest.raises(StorageError, match=r"s3://nowhere/state\.json cannot be written: .*bucket"):
        write_json(locations.location("s3://nowhere") / "state.json", "{}")
    assert proxy.methods() == ["PUT"]


WAYS = ["length", "chunked", "end", "whole"]


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_ends_early_is_asked_for_again(
    place: Location, proxy: FaultProxy, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "_PIECE", 10_000)  # so that the table takes three
    write_table(place / "part.parquet", TABLE)
    for read in (
        lambda: read_table(place / "part.parquet", TABLE.schema),
        lambda: pa.concat_tables(read_pieces(place / "part.parquet", TABLE.schema)),
    ):
        proxy.mend()
        proxy.breaks("GET", shortened(9_000, way))
        assert read() == TABLE
        assert proxy.methods().count("GET") == 4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("impatient")
def test_an_answer_that_always_ends_early_is_never_taken_for_whole(
    place: Location, proxy: FaultProxy, way: str
) -> None:
    write_atomically(place / "names.txt", b"Anna\nBerta\nClara\n")
    write_table(place / "part.parquet", TABLE)
    proxy.breaks("GET", shortened(11, way), None)
    with pytest.raises(StorageError, match=r"names\.txt cannot be read"):
        locations.read_bytes(place / "names.txt")
    with pytest.raises(StorageError, match=r"part\.parquet cannot be read"):
        read_table(place / "part.parquet", TABLE.schema)
    with pytest.raises(StorageError), Files(str(place)).reading("names.txt"):
        pass


def test_a_file_that_somebody_replaces_meanwhile_is_read_as_the_one_or_the_other(
    place: Location, proxy: FaultProxy
) -> None:
    new = "b" * 150
    write_json(place / "state.json", "a" * 100)

    def replaced(exchange: Exchange) -> None:
        write_json(place / "state.json", new)
        exchange.pass_on()

    proxy.breaks("GET", replaced)
    assert locations.read_bytes(place / "state.json").decode() == new


def test_an_upload_in_parts_that_breaks_is_done_again_and_leaves_no_parts(
    place: Location, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *given, **options: 5 << 20)
    content = os.urandom(11 << 20)
    proxy.breaks("PUT", cut(1 << 20), 2)
    proxy.breaks("PUT", answers(500, "InternalError"))
    write_atomically(place / "large", content)
    assert proxy.methods().count("PUT") >= 6  # three parts, twice
    assert proxy.methods().count("DELETE") > 0  # of the parts that had come
    assert there(place) == ["large"]
    assert locations.read_bytes(place / "large") == content


def test_an_upload_in_parts_that_nobody_ended_is_not_to_be_seen(place: Location) -> None:
    fs, path = place.fs, (place / "part.parquet").path
    bucket, key, _ = fs.split_path(path)
    begun = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    fs.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * (5 << 20))
    assert there(place) == []
    assert locations.matching(place) == []
    assert not locations.exists(place / "part.parquet")
    write_table(place / "part.parquet", TABLE)
    assert read_table(place, TABLE.schema) == TABLE


@pytest.mark.usefixtures("impatient")
def test_what_an_earlier_try_left_is_no_part_of_the_table(place: Location, proxy: FaultProxy) -> None:
    write_table(place / "part-1.parquet", TABLE.slice(0, 10))
    proxy.breaks("PUT", cut(100), None)
    with pytest.raises(StorageError):
        write_manifest(place, ["part-1.parquet"])
    proxy.mend()
    write_table(place / "part-2.parquet", TABLE.slice(10, 10))
    write_manifest(place, ["part-2.parquet"])
    assert read_table(place, TABLE.schema) == TABLE.slice(10, 10)


def test_pieces_are_written_whole_or_not_at_all(place: Location, proxy: FaultProxy) -> None:
    def pieces() -> Iterator[pa.Table]:
        yield TABLE.slice(0, 100)
        raise InputError("the source broke")

    with pytest.raises(InputError):
        write_pieces(place / "part.parquet", pieces(), TABLE.schema, dict)
    assert there(place) == []
    proxy.breaks("PUT", cut(200))
    write_pieces(place / "part.parquet", [TABLE.slice(0, 100), TABLE.slice(100, 7)], TABLE.schema, dict)
    assert [len(piece) for piece in read_pieces(place / "part.parquet", TABLE.schema, 60)] == [60, 47]


def test_what_another_machine_writes_is_seen_at_once(place: Location, store: ObjectStore) -> None:
    assert locations.matching(place) == []
    other = s3fs.S3FileSystem(
        key=store.access_key, secret=store.secret_key, endpoint_url=store.endpoint, skip_instance_cache=True
    )
    other.pipe_file((place / "new.json").path, json.dumps({"n": 1}).encode())
    assert locations.matching(place, "*.json") == [place / "new.json"]
    other.rm_file((place / "new.json").path)
    assert not locations.exists(place / "new.json")


def test_the_bucket_that_compose_makes_may_be_there(proxy: FaultProxy) -> None:
    init = yaml.safe_load((PROJECT_DIR / "docker-compose.yml").read_text("utf-8"))["services"]["init"]["command"]
    [program] = re.findall(r'python -c "([^"]*)"', init[-1])
    program = program.replace("'dare'", "'another'")
    assert not s3fs.S3FileSystem().exists("another")
    for _ in range(2):
        exec(program)
    assert s3fs.S3FileSystem().exists("another")


def test_what_fsspec_was_told_of_stores_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 60}})
    place = locations.location("s3://dare/elsewhere")
    assert place.fs.config_kwargs["read_timeout"] == 60
    assert place.fs.config_kwargs["retries"]["total_max_attempts"] == 1


def test_pools_are_published_and_read_though_every_request_fails_once(
    place: Location, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.breaks("PUT", cut(50), 5)
    proxy.breaks(("GET", "HEAD"), SLOW_DOWN, 5)
    pools = PoolStore(str(place), cache=tmp_path / "cache")
    build(pools)
    add(pools)
    proxy.breaks("GET", shortened(20, "whole"), 3)
    other = PoolStore(str(place), register=pools.register, cache=tmp_path / "other")
    other.check(other.manifest())
    assert held(Pool.open(other, "h"), "Drama") == [[1, 2, 3], [1, 2, 9], [7, 8]]


@pytest.mark.usefixtures("impatient")
def test_a_pool_that_cannot_be_written_leaves_the_one_in_force(
    place: Location, proxy: FaultProxy, tmp_path: Path
) -> None:
    pools = PoolStore(str(place), cache=tmp_path / "cache")
    first = build(pools)
    proxy.breaks("PUT", cut(50), None)
    with pytest.raises(PoolError, match=r"cannot be written: .* the version in force stays"):
        add(pools)
    proxy.mend()
    assert pools.manifest() == first
    assert held(Pool.open(pools, "h"), "Drama") == [[1, 2, 3], [1, 2, 9]]
    assert pools.manifest(add(pools).version).groups.keys() >= {"Western"}


class Copyist:
    """Writes the request's id as its text, so that it needs no model."""

    seconds = load_seconds = 0.0

    def write(self, rows: Iterable[dict[str, Any]], *told: object) -> "Iterator[Result]":
        from dare_core.decoding import Result, Statistics

        for row in rows:
            yield Result(row["request_id"], [1, 2], "stop", None, None, Statistics(new_tokens=2, steps=1))

    def text(self, result: "Result") -> str:
        return result.id

    def probe(self, *told: object) -> None:
        """Nothing to compare with."""


def planned(run_dir: Location, requests: int) -> Plan:
    """A run of one shard."""
    usual = {
        "domain": "movies", "kind": "item", "group_name": "Drama", "prompt": "?", "prompt_token_ids": [1],
        "dropped_history": 0, "epoch": 0, "data_as_of": datetime(1998, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    rows = [{**usual, "request_id": f"{n:064x}", "entity_id": str(n)} for n in range(requests)]
    parts = shards.write_shards(run_dir, "item", pa.Table.from_pylist(rows, REQUEST).to_batches(), requests, None)
    decoding = Decoding("model", "tokenizer", "strict", 2, 0.1, 16, "fp32")
    estimate = Estimate(tokens=0, seconds=None, cost=None, tokens_per_second=None, basis="nothing")
    return Plan(
        run_id="run", domain="movies", framework="kar", decoding=decoding, started_at=datetime.now(UTC), shards=parts,
        funnel={}, estimate=estimate,
    )  # fmt: skip


def from_the_third(fault: Fault) -> Fault:
    """Two requests pass."""
    numbers = count()
    return lambda exchange: Exchange.pass_on(exchange) if next(numbers) < 2 else fault(exchange)


@pytest.mark.parametrize(("fault", "kept"), [(cut(100), 2), (unanswered, 3)])
@pytest.mark.usefixtures("impatient")
def test_a_worker_whose_store_breaks_in_mid_put_is_followed_by_one_that_goes_on(
    place: Location, proxy: FaultProxy, tmp_path: Path, fault: Fault, kept: int
) -> None:
    settings = Settings(data_dir=tmp_path, storage=str(place), checkpoint_seconds=1e-6)
    run_dir = settings.run_dir("run")
    plan = planned(run_dir, 6)
    proxy.breaks("PUT", from_the_third(fault), None)
    with pytest.raises(StorageError, match=r"part-.* cannot be written"):
        worker.work_off(settings, plan, plan.shards, lambda *told: Copyist())
    proxy.mend()
    [shard] = plan.shards
    assert shards.read_manifest(shards.staged_folder(run_dir, shard.name)) is None
    [manifest] = worker.work_off(settings, plan, plan.shards, lambda *told: Copyist())
    assert (manifest["requests"], manifest["resumed"], manifest["texts"]) == (6, kept, 6 - kept)
    staged = [read_parquet(part, ["request_id"]) for part in shards.staged_parts(run_dir, [shard.name])]
    written = pa.concat_tables(staged)["request_id"].to_pylist()
    assert sorted(written) == [f"{n:064x}" for n in range(6)]
    assert list(tmp_path.iterdir()) == []
