import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from dare_core.schemas import GENERATED
from dare_core.warehouse.knowledge import load_knowledge
from tests.support.command import Dare, in_process
from tests.support.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def dare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Dare:
    """Runs ``dare …`` in a folder of its own: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DARE_DATA_DIR", str(tmp_path / "data"))
    return in_process(monkeypatch, capsys)


def write_prompts(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PROMPTS = (
    {"id": "b", "group": "Drama", "prompt": "Introduce the movie Heat."},
    {"id": "a", "group": "Western", "prompt": "Introduce the movie Rango."},
    {"id": "bad", "group": "Drama", "prompt_token_ids": [1, 5000]},
    {"id": "ids", "group": "Drama", "prompt_token_ids": [65, 66, 67]},
)


def test_texts_are_written_in_input_order_with_their_statistics(dare: Dare, model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", *PROMPTS)
    out = tmp_path / "o.parquet"
    code, printed, _ = dare("generate", "--prompts", prompts, "--out", out, "--model", model, "--max-new-tokens", 12)
    assert code == 0
    summary = json.loads(printed.splitlines()[-1])
    table = pq.read_table(out)
    assert table.schema.equals(GENERATED)
    assert table["id"].to_pylist() == ["b", "a", "bad", "ids"]
    assert table["status"].to_pylist() == ["ok", "ok", "failed", "ok"]
    assert "outside 0..257" in table["error"].to_pylist()[2]
    assert (summary["texts"], summary["failed"]) == (3, 1)
    assert summary["tokens"] == sum(map(len, table["token_ids"].to_pylist()))
    assert summary["tokens_per_step"] >= 1.0  # without a pool, texts are drafted from themselves and each other
    assert summary["tokens_per_second"] == pytest.approx(summary["tokens"] / summary["seconds"], rel=0.02)


def test_a_run_whose_prompts_all_failed_ends_with_status_1(dare: Dare, model: Path, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", PROMPTS[2]), tmp_path / "o.parquet"
    code, printed, error = dare("generate", "--prompts", prompts, "--out", out, "--model", model)
    summary = json.loads(printed.splitlines()[-1])
    assert (code, summary["texts"], summary["failed"]) == (1, 0, 1)
    assert "every prompt failed, 1 of 1" in error
    assert pq.read_table(out)["status"].to_pylist() == ["failed"]


def test_outputs_and_domains_are_looked_at_before_anything_slow(
    dare: Dare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> None:
        raise AssertionError("begun before the options were looked at")

    monkeypatch.setattr("dare_core.models.load_tokenizer", slow)
    monkeypatch.setattr("dare_core.warehouse.server._server", slow)
    prompts = write_prompts(tmp_path / "p.jsonl", PROMPTS[0])
    broken = write_prompts(tmp_path / "broken.jsonl", {"id": "a"})
    nowhere = tmp_path / "no" / "file.svg"
    for arguments, said in (
        (("generate", "--prompts", prompts, "--out", tmp_path), "is a folder; name a file"),
        (("generate", "--prompts", prompts, "--out", nowhere), "its folder does not exist"),
        (("generate", "--prompts", prompts, "--out", "/proc/o.parquet"), "cannot be written"),
        (("generate", "--prompts", broken, "--out", tmp_path / "o.parquet"), "broken.jsonl:1: group is None"),
        (("evaluate", "--chart", nowhere), "its folder does not exist"),
        (("evaluate", "--chart", tmp_path / "chart.doc"), "must end in .svg or .png"),
        (("evaluate", "--chart", tmp_path / "chart.svg", "--arms", "strict,int8"), "add it to --arms"),
        (("evaluate", "--arms", "strict,int9"), "there is no arm int9; arms are none, attributes"),
        (("evaluate", "--domain", "films"), "there are: movies"),
        (("compare-texts", "--html", tmp_path), "is a folder; name a file"),
        (("pool", "export", tmp_path, "--out", nowhere), "its folder does not exist"),
    ):
        code, _, error = dare(*arguments)
        assert (code, error.count("\n")) == (2, 1), error
        assert said in error


def test_a_misspelt_domain_is_named_with_those_that_are_there(
    dare: Dare, warehouse_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DARE_WAREHOUSE_URL", warehouse_url)
    for arguments in (
        ("warehouse", "query", "freshness", "--param", "domain=films"),
        ("quarantine", "list", "--domain", "films"),
        ("features", "export", "--domain", "films", "--out", tmp_path / "out"),
    ):
        code, printed, error = dare(*arguments)
        assert (code, printed) == (2, "")
        assert "there is no domain 'films'; there are: movies, shop" in error
    assert "--param k=…  how many (int, default 10)" in dare("warehouse", "query")[1]


def test_a_pool_of_the_same_texts_makes_them_cheaper_and_no_different(
    dare: Dare, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARE_DRAFT_BUDGET", "fixed")  # on a busy machine drafts may not pay
    prompts = write_prompts(tmp_path / "p.jsonl", *PROMPTS[:2])
    common = ("generate", "--prompts", prompts, "--model", model, "--verification", "strict", "--max-new-tokens", 24)
    assert dare(*common, "--out", tmp_path / "plain.parquet")[0] == 0
    pq.write_table(pq.read_table(tmp_path / "plain.parquet").slice(0, 1), tmp_path / "knowledge.parquet")
    code, printed, _ = dare(
        "pool",
        "build",
        "--knowledge",
        tmp_path / "knowledge.parquet",
        "--model",
        model,
        "--out",
        tmp_path / "pool",
        "--json",
    )
    assert code == 0
    built = json.loads(printed)
    assert dare("pool", "inspect", tmp_path / "pool", "--json") == (0, printed, "")
    assert built["groups"]["Drama"] == {"texts": 1, "tokens": 24} == built["groups"]["*"]
    assert "Drama" in dare("pool", "inspect", tmp_path / "pool")[1]

    code, printed, _ = dare(*common, "--out", tmp_path / "drafted.parquet", "--pool", tmp_path / "pool")
    assert code == 0
    summary = json.loads(printed.splitlines()[-1])
    plain, drafted = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("plain", "drafted"))
    assert plain["token_ids"].equals(drafted["token_ids"])
    assert drafted["draft_group"].to_pylist() == ["Drama", "*"]
    assert summary["global_pool_texts"] == 1
    assert summary["tokens_per_step"] > 1.5

    pinned = dare(
        *common, "--out", tmp_path / "x.parquet", "--pool", tmp_path / "pool", "--pool-version", built["version"]
    )
    assert pinned[0] == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "p.jsonl: holds no prompts"),
        ("\n \n", "p.jsonl: holds no prompts"),
        ('{"id": "a", "group"', "p.jsonl:1: not JSON"),
        ('{"id": "a", "group": "g", "prompt": "x"}\n[1]', "p.jsonl:2: not an object"),
        ('{"id": 1, "group": "g", "prompt": "x"}', "p.jsonl:1: id is 1; a string is needed"),
        ('{"id": "a", "prompt": "x"}', "p.jsonl:1: group is None"),
        ('{"id": "a", "group": "g"}', "p.jsonl:1: one of prompt and prompt_token_ids"),
        ('{"id": "a", "group": "g", "prompt": 3}', "p.jsonl:1: prompt is 3"),
        ('{"id": "a", "group": "g", "prompt_token_ids": [1, "2"]}', "p.jsonl:1: prompt_token_ids is not a list"),
        ('{"id": "a", "group": "g", "prompt_token_ids": [true]}', "p.jsonl:1: prompt_token_ids is not a list"),
        ('{"id": "a", "group": "g", "prompt": "\\ud800"}', "p.jsonl:1: 'utf-8' codec can't encode"),
        ('{"id": "a", "group": "g", "prompt": "x"}\n' * 2, "p.jsonl:2: id 'a' stands on an earlier line too"),
        pytest.param("[" * 100_000, "p.jsonl:1: not JSON", id="deeply nested"),
    ],
)
def test_a_malformed_prompts_file_is_one_line_naming_file_and_line(
    dare: Dare, model: Path, tmp_path: Path, content: str, said: str
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(content)
    code, printed, error = dare("generate", "--prompts", prompts, "--out", tmp_path / "o.parquet", "--model", model)
    assert (code, printed) == (2, "")
    assert error.startswith("dare: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "o.parquet").exists()


def test_what_is_not_there_is_one_line_and_leaves_no_output(dare: Dare, model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", PROMPTS[0])
    out = tmp_path / "o.parquet"
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"id": "\xe9"}')

    def refused(*arguments: object) -> str:
        code, printed, error = dare(*arguments)
        assert (code, printed, error.count("\n")) == (2, "", 1), error
        assert not out.exists()
        return error

    start = ("generate", "--model", model)
    assert "gone.jsonl: cannot be read" in refused(*start, "--prompts", tmp_path / "gone.jsonl", "--out", out)
    assert "latin.jsonl: not UTF-8" in refused(*start, "--prompts", latin, "--out", out)
    assert "its folder does not exist" in refused(*start, "--prompts", prompts, "--out", tmp_path / "no" / "o.parquet")
    assert "there is no pool at" in refused(*start, "--prompts", prompts, "--out", out, "--pool", tmp_path / "no")
    assert "is not a folder" in refused("generate", "--prompts", prompts, "--out", out, "--model", tmp_path / "no")
    assert "could not be loaded" in refused("generate", "--prompts", prompts, "--out", out, "--model", tmp_path)
    assert "DARE_TOP_K" in refused(*start, "--prompts", prompts, "--out", out, "--top-k", 0)
    assert "there is no pool at" in refused("pool", "inspect", tmp_path / "no")


@pytest.mark.parametrize("root", ["movies/item", "data/pools/movies/item"])
def test_texts_are_drafted_from_a_pool_of_the_pipeline_whose_version_the_warehouse_knows(
    dare: Dare, model: Path, tmp_path: Path, warehouse_url: str, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.setenv("DARE_WAREHOUSE_URL", warehouse_url)
    (tmp_path / "data" / "pools" / "movies" / "item").mkdir(parents=True)
    pq.write_table(pa.table({"group": ["Drama"], "token_ids": [[1, 2, 3]]}), tmp_path / "knowledge.parquet")
    built = ("pool", "build", "--knowledge", tmp_path / "knowledge.parquet", "--out", root, "--model", model)
    assert dare(*built)[0] == 0
    assert not (tmp_path / "data/pools/movies/item/CURRENT").exists()
    prompts, out = write_prompts(tmp_path / "p.jsonl", PROMPTS[0]), tmp_path / "o.parquet"
    code, printed, error = dare("generate", "--prompts", prompts, "--out", out, "--model", model, "--pool", root)
    assert (code, json.loads(printed)["texts"]) == (0, 1), error
    assert pq.read_table(out)["draft_group"].to_pylist() == ["Drama"]


def test_a_pool_of_another_tokenizer_is_refused(dare: Dare, model: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", ["<|other|>", "<|im_end|>"])
    texts = pa.table({"group": ["g"], "token_ids": [[1, 2, 3]]})
    pq.write_table(texts, tmp_path / "knowledge.parquet")
    build = (
        "pool",
        "build",
        "--knowledge",
        tmp_path / "knowledge.parquet",
        "--out",
        tmp_path / "pool",
        "--model",
        other,
    )
    assert dare(*build)[0] == 0
    prompts = write_prompts(tmp_path / "p.jsonl", PROMPTS[0])
    code, _, error = dare(
        "generate", "--prompts", prompts, "--out", tmp_path / "o.parquet", "--model", model, "--pool", tmp_path / "pool"
    )
    assert code == 2
    assert "was built with tokenizer" in error
    assert not (tmp_path / "o.parquet").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table({"group": ["g"]}), "column 'token_ids' is missing"),
        (
            pa.table({"group": pa.array([], pa.string()), "token_ids": pa.array([], pa.list_(pa.int32()))}),
            "holds no rows",
        ),
        (pa.table({"group": ["g", None], "token_ids": [[1], [2]]}), "column 'group' holds nulls"),
        (pa.table({"group": ["g"], "token_ids": [[1, None]]}), "column 'token_ids' holds nulls"),
        (pa.table({"group": ["g"], "token_ids": ["text"]}), "k.parquet"),
        (pa.table({"group": ["g"], "token_ids": [[1, 9999]]}), "outside the tokenizer's 0..257"),
    ],
)
def test_a_knowledge_file_that_makes_no_pool_is_refused(
    dare: Dare, model: Path, tmp_path: Path, table: pa.Table, said: str
) -> None:
    pq.write_table(table, tmp_path / "k.parquet")
    arguments = ("pool", "build", "--knowledge", tmp_path / "k.parquet", "--out", tmp_path / "pool", "--model", model)
    code, _, error = dare(*arguments)
    assert code == 2
    assert said in error
    assert not (tmp_path / "pool").exists()


def test_a_file_that_is_no_parquet_is_refused(dare: Dare, model: Path, tmp_path: Path) -> None:
    (tmp_path / "k.parquet").write_text("no")
    build = ("pool", "build", "--out", tmp_path / "pool", "--model", model, "--knowledge")
    assert "not a readable Parquet file" in dare(*build, tmp_path / "k.parquet")[2]
    assert "there is no such file" in dare(*build, tmp_path / "gone.parquet")[2]


def test_a_wrong_setting_fails_every_command_at_its_start(dare: Dare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARE_BATCH_SIZE", "many")
    code, _, error = dare("warehouse", "stop")
    assert code == 2
    assert "DARE_BATCH_SIZE" in error
    assert "'many'" in error


def test_a_wrong_run_option_is_named(dare: Dare) -> None:
    for option, value in (("--item-limit", 0), ("--run-id", "../x"), ("--min-prob", 2)):
        code, _, error = dare("pipeline", "run", option, value)
        assert code == 2
        assert option in error


def test_a_pool_is_added_to_compared_rolled_back_forgotten_from_exported_and_expired(
    dare: Dare, model: Path, tmp_path: Path
) -> None:
    def texts(*rows: tuple[str, str, list[int]]) -> Path:
        groups, entities, ids = zip(*rows, strict=True)
        path = tmp_path / "k.parquet"
        pq.write_table(pa.table({"group": groups, "entity_id": entities, "token_ids": ids}), path)
        return path

    def said(*arguments: object) -> dict[str, Any]:
        code, printed, error = dare("pool", *arguments, "--json")
        assert code == 0, error
        found: dict[str, Any] = json.loads(printed)
        return found

    pool, of_model = tmp_path / "pool", ("--model", model)
    knowledge = texts(("Drama", "u1", [1, 2]), ("Krimi ☂", "u2", [3]))
    first = said("build", "--knowledge", knowledge, "--out", pool, *of_model)
    second = said("add", pool, "--knowledge", texts(("Drama", "u3", [4, 5]), ("Drama", "u1", [1, 2])), *of_model)
    assert (first["texts"], second["texts"]) == (2, 3)
    assert said("diff", pool)["added"] == {"Drama": 1}
    assert said("verify", pool)["version"] == second["version"]
    assert said("rollback", pool)["version"] == first["version"]
    assert said("rollback", pool, "--pool-version", second["version"])["version"] == second["version"]
    forgotten = said("forget", pool, "--entity", "u1", "--entity", "u2")
    assert forgotten["texts_removed"] == 2
    assert set(forgotten["older_versions"]) == {first["version"], second["version"]}
    assert said("export", pool, "--out", tmp_path / "out.parquet")["texts"] == 1
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [{"group": "Drama", "token_ids": [4, 5], "day": None}]
    assert set(said("expire", pool, "--keep", 1)["expired"]) == {first["version"], second["version"]}
    for command in (("inspect",), ("verify",), ("expire", "--keep", 1)):
        assert dare("pool", command[0], pool, *command[1:])[0] == 0

    segment = next((pool / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    code, _, error = dare("pool", "verify", pool)
    assert code == 2
    assert segment.name in error
    assert "has no version before" in dare("pool", "rollback", pool)[2]


def test_the_shop_is_imported_in_the_size_that_was_asked_for_and_a_day_passes(
    dare: Dare, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARE_WAREHOUSE_URL", warehouse_url)
    code, _, said = dare("source", "advance")
    assert (code, said.strip()) == (
        2,
        "dare: there is no shop in schema source; run `dare source import --domain shop`",
    )
    code, printed, _ = dare("source", "import", "--domain", "shop", "--products", 30, "--customers", 20)
    counts = json.loads(printed)
    assert (code, counts["shop_products"], counts["shop_customers"]) == (0, 30, 20)
    code, printed, _ = dare("source", "advance", "--days", 2)
    assert code == 0
    assert json.loads(printed)["purchases"] >= 4


@pytest.mark.parametrize(
    "arguments", [("--domain", "books"), ("--domain", "shop", "--products", "0"), ("--seed", "-1")]
)
def test_a_shop_that_cannot_be_made_is_refused(dare: Dare, arguments: tuple[str, ...]) -> None:
    assert dare("source", "import", *arguments)[0] == 2


def test_a_folder_without_a_release_is_one_line(dare: Dare, tmp_path: Path) -> None:
    code, printed, error = dare("source", "import", "--from", tmp_path)
    assert (code, printed) == (2, "")
    assert f"dare: {tmp_path} holds no release that is known" in error


def test_a_digest_names_parts_and_ends_with_status_1_where_something_is_unfinished(
    dare: Dare,
    warehouse_url: str,
    monkeypatch: pytest.MonkeyPatch,
    engine: Engine,
    knowledge_rows: Callable[..., pa.Table],
    embedding_rows: Callable[..., pa.Table],
) -> None:
    monkeypatch.setenv("DARE_WAREHOUSE_URL", warehouse_url)
    upsert = "INSERT INTO knowledge.watermark VALUES ('movies', 'item', '2024-01-01')"
    with engine.begin() as connection:
        connection.exec_driver_sql(upsert)
    code, printed, _ = dare("digest", "--json")
    found = json.loads(printed)
    assert (code, found["unfinished"]) == (0, [])
    assert found["parts"]["warehouse.watermark"]["rows"] == 1
    assert dare("digest", "--json")[1] == printed
    load_knowledge(engine, knowledge_rows([{"request_id": "r1", "entity_id": "1"}]), embedding_rows([]))
    code, printed, _ = dare("digest", "--json")
    assert code == 1
    assert json.loads(printed)["unfinished"] == ["1 valid texts have no vector of the encoder in force"]
