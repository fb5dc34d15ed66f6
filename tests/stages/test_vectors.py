"""Vectors in the form that a domain says: made by runs, for another encoder, and anew after the form has changed."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sqlalchemy import Engine, text

from dare_core.config.settings import BUNDLED_ENCODER, PROJECT_DIR, Settings
from dare_core.embedding.combination import combined
from dare_core.embedding.encoder import Encoder
from dare_core.errors import SettingError
from dare_core.knowledge import shards, vectors
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.requests import Decoding
from dare_core.knowledge.shards import Plan
from dare_core.quality.findings import read_warnings
from dare_core.schemas import KINDS, REQUEST
from dare_core.stages import load
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse import encoders, texts_to_embed
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.knowledge import load_knowledge
from dare_core.warehouse.runs import record_run
from tests.support.tiny_model import LAX

Rows = Callable[..., pa.Table]
NOW = datetime(1998, 1, 1, tzinfo=UTC)
TEXTS = {"i": "A tense heist.", "u": "Likes robots."}
ATTRIBUTES = {"i": "Heat (release year 1995; genres Crime)", "u": "age 24"}
HISTORY = '- "Alien": 5 stars\n- "Heat": 4 stars'


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(Settings(device="cpu"))


@pytest.fixture(autouse=True)
def _loaded_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every encoder is the bundled one, under its own name."""
    monkeypatch.setattr(Encoder, "load", lambda settings: Encoder(settings.encoder, encoder.model))


@pytest.fixture
def settings(settings: Settings, warehouse_url: str, engine: Engine, entity_rows: Rows, tmp_path: Path) -> Settings:
    """A warehouse of a film and of a user, who saw two films by now and a third afterwards."""
    history = [
        {"title": title, "value": value, "time": (NOW + timedelta(days=days)).isoformat()}
        for title, value, days in (("Alien", 5, -9), ("Heat", 4, 0), ("Jaws", 3, 1))
    ]
    described = {
        "i": {"title": "Heat", "release_year": 1995, "genres": ["Crime"]},
        "u": {"age": 24, "history": history},
    }
    rows = [
        {"entity_id": name, "kind": kind, "attributes": json.dumps(described[name])}
        for name, kind in (("i", "item"), ("u", "user"))
    ]
    upsert_entities(engine, entity_rows(rows))
    (tmp_path / "config").mkdir()
    return settings.model_copy(update={"warehouse_url": _secret(warehouse_url), "config_dir": tmp_path / "config"})


def _secret(url: str) -> Any:
    return Settings(warehouse_url=url).warehouse_url


def choose(settings: Settings, form: str) -> None:
    """Write the domain's file with this form."""
    movies = (PROJECT_DIR / "config" / "movies.toml").read_text("utf-8") + LAX
    line = 'embedded = "history+answer"'
    assert line in movies
    (settings.config_dir / "movies.toml").write_text(movies.replace(line, f'embedded = "{form}"'), "utf-8")


@pytest.fixture
def written(knowledge_rows: Rows) -> pa.Table:
    """A text of each, and one of a film that is gone."""
    return knowledge_rows(
        [
            {"request_id": "ri", "entity_id": "i", "text": TEXTS["i"]},
            {"request_id": "ru", "entity_id": "u", "kind": "user", "text": TEXTS["u"]},
            {"request_id": "rg", "entity_id": "gone", "text": "Nobody knows it."},
        ]
    )


def run(settings: Settings, engine: Engine, texts: pa.Table, run_id: str = "r") -> dict[str, Any]:
    """Finish and load written texts as a run does."""
    usual = {"domain": "movies", "params": "{}", "model": "m", "started_at": NOW, "planned": len(texts)}
    record_run(engine, run_id, state="planned", **usual)
    run_dir = settings.run_dir(run_id)
    parts = []
    for kind in KINDS:
        of_kind = texts.filter(pc.equal(texts["kind"], kind))
        parts += shards.write_shards(run_dir, kind, of_kind.select(REQUEST.names).to_batches(), 100, None)
        if len(of_kind):
            shards.write_part(run_dir / "staged" / f"{kind}-0000", 0, "try", of_kind.to_pylist(), [], 1.0)
    planned = Plan(
        run_id=run_id, domain="movies", framework="kar", decoding=Decoding("m", "t", "strict", 1, 0.0, 96),
        started_at=NOW, shards=parts, funnel={},
        estimate=Estimate(tokens=0, seconds=None, cost=None, tokens_per_second=None, basis=""),
    )  # fmt: skip
    run_files.write_json(run_dir / "plan.json", planned.model_dump_json())
    return load.run(settings, RunRequest(run_id=run_id))


def stored(engine: Engine, encoder: str = BUNDLED_ENCODER) -> dict[str, tuple[str, Any]]:
    """Forms and vectors by request."""
    query = "SELECT request_id, form, embedding FROM knowledge.knowledge_embedding WHERE encoder = :encoder"
    with engine.connect() as connection:
        found = connection.execute(text(query), {"encoder": encoder})
        return {request: (form, np.asarray(vector.to_list(), np.float32)) for request, form, vector in found}


def same(encoder: Encoder, vector: Any, *parts: str) -> bool:
    return bool(np.array_equal(vector, combined(encoder, [parts]).flatten().to_numpy()))


@pytest.mark.parametrize(
    ("form", "of_item", "of_user"),
    [
        ("answer", (TEXTS["i"],), (TEXTS["u"],)),
        ("attributes+answer", (ATTRIBUTES["i"], TEXTS["i"]), (ATTRIBUTES["u"], TEXTS["u"])),
        ("history+answer", (ATTRIBUTES["i"], TEXTS["i"]), (HISTORY, TEXTS["u"])),
    ],
)
def test_a_run_s_vectors_have_the_form_of_the_domain_and_show_no_event_that_the_prompt_could_not(
    settings: Settings,
    engine: Engine,
    encoder: Encoder,
    written: pa.Table,
    form: str,
    of_item: Sequence[str],
    of_user: Sequence[str],
) -> None:
    choose(settings, form)
    done = run(settings, engine, written)
    assert (done["loaded"], done["quarantined"], done["warnings"]) == (3, 0, [])
    found = stored(engine)
    assert {request: made for request, (made, _) in found.items()} == {"ri": form, "ru": form, "rg": "answer"}
    assert same(encoder, found["ri"][1], *of_item)
    assert same(encoder, found["ru"][1], *of_user)
    assert same(encoder, found["rg"][1], "Nobody knows it.")


def test_a_run_warns_of_valid_vectors_in_another_form_until_they_are_embedded_anew(
    settings: Settings, engine: Engine, encoder: Encoder, written: pa.Table, knowledge_rows: Rows
) -> None:
    choose(settings, "answer")
    run(settings, engine, written)
    choose(settings, "attributes+answer")
    newer = knowledge_rows([{"request_id": "new", "entity_id": "u", "kind": "user", "epoch": 1, "text": "Robots."}])
    said = (
        "one form of vectors: 1 valid texts have vectors in another form than attributes+answer; "
        "run `dare warehouse reembed --domain movies`"
    )
    assert run(settings, engine, newer, "next")["warnings"] == [said], "the user's is replaced by now"
    assert said in read_warnings(settings.run_dir("next"))
    assert vectors.reembed(settings, "movies") == {"domain": "movies", "form": "attributes+answer", "embedded": 1}
    found = stored(engine)
    assert {request: form for request, (form, _) in found.items()} == {
        "ri": "attributes+answer", "new": "attributes+answer", "ru": "answer", "rg": "answer"
    }  # fmt: skip
    assert same(encoder, found["ri"][1], ATTRIBUTES["i"], TEXTS["i"])
    assert same(encoder, found["ru"][1], TEXTS["u"]), "a replaced text stays as it is"
    assert run(settings, engine, newer.slice(1), "empty")["warnings"] == []


def test_embedding_anew_goes_on_where_it_was_broken_off(
    settings: Settings, engine: Engine, encoder: Encoder, knowledge_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_to_embed, "_TEXTS_PER_BATCH", 2)
    _some_films(settings, engine, knowledge_rows)
    asked: list[str] = []
    whole = Encoder.encode

    def breaks(self: Encoder, texts: Sequence[str], batch_size: int = 64) -> pa.FixedSizeListArray:
        asked.extend(each for each in texts if each.startswith("Text"))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return whole(self, texts, batch_size)

    choose(settings, "attributes+answer")
    monkeypatch.setattr(Encoder, "encode", breaks)
    with pytest.raises(KeyboardInterrupt):
        vectors.reembed(settings, "movies")
    assert [form for _, (form, _) in sorted(stored(engine).items())] == ["attributes+answer"] * 2 + ["answer"] * 3
    assert vectors.reembed(settings, "movies")["embedded"] == 3
    assert asked[4:] == ["Text 2", "Text 3", "Text 4"]
    assert vectors.reembed(settings, "movies")["embedded"] == 0


def test_two_that_embed_anew_at_once_replace_every_vector_once(
    settings: Settings, engine: Engine, encoder: Encoder, knowledge_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_to_embed, "_TEXTS_PER_BATCH", 1)
    _some_films(settings, engine, knowledge_rows)
    choose(settings, "attributes+answer")
    with ThreadPoolExecutor(2) as both:
        done = [both.submit(vectors.reembed, settings, "movies") for _ in range(2)]
        assert sum(each.result()["embedded"] for each in done) == 5
    found = stored(engine)
    assert all(same(encoder, found[f"r{n}"][1], f"Film {n}", f"Text {n}") for n in range(5))


def _some_films(settings: Settings, engine: Engine, knowledge_rows: Rows) -> None:
    """Five films, each with a text that is embedded alone."""
    choose(settings, "answer")
    entities = [
        {
            "domain": "movies", "kind": "item", "entity_id": str(n), "group_name": "g", "data_as_of": NOW, "events": 1,
            "attributes": json.dumps({"title": f"Film {n}"}),
        }
        for n in range(5)
    ]  # fmt: skip
    upsert_entities(engine, pa.Table.from_pylist(entities))
    rows = knowledge_rows([{"request_id": f"r{n}", "entity_id": str(n), "text": f"Text {n}"} for n in range(5)])
    load_knowledge(engine, rows, *vectors.vectors(settings, engine, rows))


def test_another_encoder_embeds_every_text_in_the_form_that_is_served(
    settings: Settings, engine: Engine, encoder: Encoder, written: pa.Table, knowledge_rows: Rows
) -> None:
    choose(settings, "answer")
    run(settings, engine, written)
    choose(settings, "history+answer")
    newer = knowledge_rows([{"request_id": "new", "entity_id": "u", "kind": "user", "epoch": 1, "text": "Robots."}])
    run(settings, engine, newer, "next")
    assert vectors.add_encoder(settings, "other")["embedded"] == 4
    found = stored(engine, "other")
    assert {request: form for request, (form, _) in found.items()} == {
        "ri": "answer", "ru": "answer", "rg": "answer", "new": "history+answer"
    }  # fmt: skip
    assert same(encoder, found["ri"][1], TEXTS["i"])
    assert same(encoder, found["new"][1], HISTORY, "Robots.")
    assert vectors.reembed(settings, "movies")["embedded"] == 2, "the film's, by both encoders"
    encoders.switch(engine, "other")
    assert stored(engine, "other")["ri"][0] == "history+answer"


def test_embedding_a_domain_anew_that_is_not_configured_is_refused(settings: Settings) -> None:
    choose(settings, "answer")
    with pytest.raises(SettingError, match=r"domain 'films' is not configured in .*; there are: movies"):
        vectors.reembed(settings, "films")
