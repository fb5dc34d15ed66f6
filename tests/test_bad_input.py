"""Files and settings of every bad kind: what is said of each is what docs/bad_input.md quotes."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dare_core.config.domains import load_domain, read_domain
from dare_core.config.settings import PROJECT_DIR, load_settings
from dare_core.errors import DareError
from dare_core.knowledge import shards
from dare_core.knowledge.prompt_file import read_prompts
from dare_core.pools import Pool, PoolBuilder, PoolStore
from dare_core.pools.knowledge_file import read_knowledge
from dare_core.schemas import KNOWLEDGE
from dare_core.sources.releases import open_release
from tests.support.bad_input_table import rows

TABLE: Final = rows("Files and settings")
SHIPPED: Final = (PROJECT_DIR / "config" / "movies.toml").read_text("utf-8")


def prompts(content: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "p.jsonl").write_bytes(content)
        return read_prompts(folder / "p.jsonl", lambda message: list(message.encode()))

    return read


def line(**values: Any) -> bytes:
    return json.dumps({"id": "1", "group": "g", **values}).encode()


def setting(name: str, value: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            return load_settings()

    return read


def settings_file(content: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            (folder / "dare.toml").write_bytes(content)
            return load_settings()

    return read


def domain(content: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "movies.toml").write_bytes(content)
        return read_domain(folder / "movies.toml")

    return read


def misnamed(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / name).write_text(SHIPPED)
        return load_domain(load_settings(config_dir=folder), Path(name).stem)

    return read


def release(*ratings: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "ratings.dat").write_text("\n".join(ratings))
        (folder / "movies.dat").write_text("9::Heat (1995)::Drama\n")
        return [table.read_all() for table in open_release(folder).tables.values()]

    return read


def part(change: Callable[[pa.Table], pa.Table] = lambda table: table, cut: int = 0) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        values = {field.name: _some(field.type) for field in KNOWLEDGE}
        table = pa.Table.from_pylist([values], pa.schema([field.with_nullable(True) for field in KNOWLEDGE]))
        path = folder / "staged" / "item-0000" / "part-0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(change(table), path)
        path.write_bytes(path.read_bytes()[: -cut or None])
        return shards.read_staged(folder, ["item-0000"])

    return read


def _some(kind: pa.DataType) -> Any:
    return [1] if pa.types.is_list(kind) else pa.scalar(0).cast(pa.int64()).cast(kind).as_py()


def left(name: str, content: bytes, read: Callable[[Path], object]) -> Callable[[Path], object]:
    def written(folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read(folder)

    return written


def pool(folder: str, change: Callable[[bytes], bytes], version: str | None = None) -> Callable[[Path], object]:
    """A pool of one version, of whose file of that kind something else is left; it is opened."""

    def read(root: Path) -> object:
        pools = PoolStore(root)
        PoolBuilder(pools, "m", "h", 100).build(pa.table({"group": ["g"], "token_ids": [[1, 2, 3]]}))
        path = root / folder if (root / folder).is_file() else next((root / folder).iterdir())
        changed = change(path.read_bytes())
        path.unlink()
        path.write_bytes(changed)
        return Pool.open(PoolStore(root), "h", version)

    return read


def knowledge(columns: Mapping[str, list[Any]]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        pq.write_table(pa.table(dict(columns)), folder / "k.parquet")
        return PoolBuilder(PoolStore(folder / "pool"), "m", "h", 100).build(read_knowledge(folder / "k.parquet"))

    return read


GOOD_RATING: Final = "1::9::5::978300000"
#: What is tried: by the words of the table, something that reads the input.
TRIED: Final[Mapping[str, Callable[[Path], object]]] = {
    "a prompts file that is no UTF-8": prompts(b"\xff"),
    "a prompts file with a line that is no JSON": prompts(b"{"),
    "a prompt without a text": prompts(line()),
    "half of a surrogate pair in a prompt": prompts(line(prompt="\ud800")),
    "two prompts of one id": prompts(line(prompt="a") + b"\n" + line(prompt="b")),
    "a setting of a wrong kind": setting("DARE_BATCH_SIZE", "many"),
    "a setting without end": setting("DARE_DEADLINE_HOURS", "inf"),
    "a setting that does not exist": settings_file(b"batchsize = 1"),
    "a URL as the data folder": setting("DARE_DATA_DIR", "s3://bucket/dare"),
    "a domain file of another name than domains have": misnamed("My-Shop.toml"),
    "a settings file that is no TOML": settings_file(b"batch_size 1"),
    "a domain file that is no TOML": domain(b"[source"),
    "a domain file that is no UTF-8": domain(b"\xff"),
    "a domain file that names itself": domain(b'name = "../x"\n' + SHIPPED.encode()),
    "a table of files that leads out of its folder": domain(
        SHIPPED.replace('"postgres"', '"csv"', 1).replace('"ratings"', '"../ratings"').encode()
    ),
    "a line of a release that cannot be read": release(
        GOOD_RATING, "x", *[f"1::{n}::5::978300000" for n in range(200)]
    ),
    "many lines of a release that cannot be read": release(GOOD_RATING, "x", "y"),
    "a Parquet part of a run that is cut short": part(cut=9),
    "a Parquet part of a run without a column": part(lambda table: table.drop_columns(["text"])),
    "a Parquet part of a run with a column of another type": part(
        lambda table: table.set_column(table.column_names.index("text"), "text", pa.array([1]))
    ),
    "a Parquet part of a run with a value missing": part(
        lambda table: table.set_column(table.column_names.index("text"), "text", pa.array([None], pa.string()))
    ),
    "a run's plan that is damaged": left("plan.json", b"{", shards.read_plan),
    "a shard's manifest that is damaged": left("manifest.json", b"[]", shards.read_manifest),
    "a pool's manifest that is damaged": pool("versions", lambda whole: whole.replace(b'"m"', b'"n"')),
    "a pool's manifest that is no manifest": pool("versions", lambda whole: b"[]"),
    "a pool's segment with a flipped bit": pool("segments", lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])),
    "a pool's segment that is cut short": pool("segments", lambda whole: whole[:-1]),
    "a pool's list of versions that is damaged": pool("CURRENT", lambda whole: b"../../elsewhere"),
    "a version of a pool that leads out of it": pool("CURRENT", lambda whole: whole, "../../elsewhere"),
    "texts for a pool without a column": knowledge({"group": ["g"]}),
    "texts for a pool with token ids out of range": knowledge({"group": ["g"], "token_ids": [[100]]}),
}


@pytest.mark.parametrize("kind", TRIED)
def test_what_is_said_of_bad_input_is_what_the_page_quotes(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = TABLE[kind]
    caplog.set_level(logging.WARNING)
    try:
        TRIED[kind](tmp_path)
    except DareError as error:
        assert row.outcome == "refused"
        assert row.tells(str(error)), error
        assert "\n" not in str(error)
    else:
        assert row.outcome == "counted"
        assert row.tells(caplog.text), caplog.text


@pytest.mark.parametrize("read", [prompts, settings_file, domain], ids=["prompts", "settings", "domain"])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, read: Callable[[bytes], Callable[[Path], object]]) -> None:
    content = {prompts: line(prompt="a"), settings_file: b"batch_size = 3", domain: SHIPPED.encode()}[read]
    assert read(b"\xef\xbb\xbf" + content)(tmp_path) == read(content)(tmp_path)


def test_the_page_tells_of_every_kind_that_is_tried_and_of_no_other() -> None:
    assert set(TABLE) == set(TRIED)
