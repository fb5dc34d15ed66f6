"""What was left over is found, in files and in tables."""

import json

import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.operations.forgetting import forget
from dare_core.pools import retention
from tests.operations.forgetting.installation import USER, pool, require_nothing_found, rows


@pytest.mark.parametrize(
    "planted",
    ["runs/late/shards/user-0000.parquet", "somewhere/copy.bin", "pools/movies/user/segments/left", "notes.json"],
)
def test_what_is_left_over_is_found(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    [(prompt, request_id)] = rows(
        engine, "SELECT prompt, request_id FROM knowledge.knowledge WHERE kind = 'user' AND entity_id = '1' LIMIT 1"
    )
    [segment, *_] = retention.holding(pool(settings, engine, "user"), ["1"])
    shards = (settings.run_dir("first") / "shards").glob("user-*.parquet")
    [shard] = [path for path in shards if "1" in pq.read_table(path)["entity_id"].to_pylist()]
    contents = {
        "shards": shard.read_bytes(),
        "copy.bin": b"\x00\xff" + prompt.encode() + b"\xfe",
        "segments": (settings.pool_dir("movies", "user") / segment).read_bytes(),
        "notes.json": json.dumps({"of": request_id}).encode(),
    }
    [content] = [content for name, content in contents.items() if name in planted]
    path = settings.data_dir / planted

    def plant(*_: object) -> None:  # after everything was removed, before the search
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr("dare_core.operations.forgetting.clean.vacuum", plant)
    done = forget(settings, USER)
    assert [where.partition(": ")[0] for where in done.found] == [planted]
    assert len(list((settings.data_dir / "forgetting").iterdir())) == 1, "what is looked for is known the next time"
    monkeypatch.undo()
    if planted in ("somewhere/copy.bin", "notes.json"):  # nothing that the platform wrote
        assert len(forget(settings, USER).found) == 1
        path.unlink()
    require_nothing_found(forget(settings, USER))
    assert not path.exists() or planted.startswith("runs/")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE knowledge.generation_run SET measured = jsonb_build_object('worst', '{request_id}'::text)",
        "UPDATE knowledge.quarantine SET value = 'as user 1 has it'",
        "INSERT INTO source.ratings VALUES ('1', '4')",
        "CREATE TABLE staging.left_over AS SELECT 'said: ' || '{prompt}' AS line",
    ],
)
def test_what_is_left_in_a_table_is_found(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    [(prompt, request_id)] = rows(
        engine, "SELECT prompt, request_id FROM knowledge.knowledge WHERE kind = 'user' AND entity_id = '1' LIMIT 1"
    )
    quarantined = {"request_id": "r", "rule": "x", "domain": "movies", "kind": "user", "entity_id": "0"}

    def plant(*_: object) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO knowledge.quarantine VALUES (%(request_id)s, %(rule)s, %(domain)s, %(kind)s, "
                "%(entity_id)s, 'first', '', '', now())",
                quarantined,
            )
            made = statement.replace("{prompt}", prompt.replace("'", "''")).replace("{request_id}", request_id)
            connection.exec_driver_sql(made.replace("%", "%%"))

    monkeypatch.setattr("dare_core.operations.forgetting.clean.vacuum", plant)
    assert len(forget(settings, USER).found) == 1
