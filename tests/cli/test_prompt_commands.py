"""``dare prompt show`` and ``dare domain check``: what is asked, shown before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine, text

from dare_core.config.settings import PROJECT_DIR
from dare_core.warehouse.entities import upsert_entities
from tests.support.command import Dare, in_process
from tests.support.tiny_model import save_tiny_model

TITLES = {"50": "Heat", "51": "Ghost \x1b[2J", "52": "A very long title, " * 5, "53": "Up"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def dare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, warehouse_url: str, model: Path
) -> Dare:
    """Runs ``dare …`` on the test's warehouse and configuration, with a tiny model: status, output, errors."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "movies.toml").write_text((PROJECT_DIR / "config" / "movies.toml").read_text("utf-8"), "utf-8")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "DATA_DIR": tmp_path / "data",
        "CONFIG_DIR": config,
        "WAREHOUSE_URL": warehouse_url,
        "MODEL": model,
        "MAX_NEW_TOKENS": 16,
    }.items():
        monkeypatch.setenv(f"DARE_{name}", str(value))
    monkeypatch.setattr("dare_core.models.load_model", None)  # nothing here needs weights
    return in_process(monkeypatch, capsys)


@pytest.fixture
def films(engine: Engine, entity_rows: Callable[..., pa.Table]) -> None:
    rows = [{"entity_id": key, "attributes": json.dumps({"title": title})} for key, title in TITLES.items()]
    upsert_entities(engine, entity_rows(rows))


def figures(dare: Dare, *arguments: object) -> dict[str, Any]:
    code, printed, error = dare(*arguments, "--json")
    assert code == 0, error
    found: dict[str, Any] = json.loads(printed)
    return found


@pytest.mark.usefixtures("films")
def test_a_sample_is_shown_with_the_longest_entity_and_what_all_of_them_take(dare: Dare) -> None:
    found = figures(dare, "prompt", "show", "--domain", "movies", "--kind", "item", "--sample", 2)
    assert found["asked"][0]["entity_id"] == "52"
    assert 2 <= len(found["asked"]) <= 3
    for asked in found["asked"]:
        assert asked["source"] == [" ".join(TITLES[asked["entity_id"]].split())]
        assert asked["source"][0] in asked["text"]
    assert (found["version"], found["entities"]) == ("kar@1", 4)
    tokens = [asked["tokens"] for asked in found["asked"]]
    assert tokens[0] == max(tokens)
    assert found["prompt_tokens"] == round(sum(tokens) / len(tokens) * 4)
    assert 0 < found["shared_tokens"] < min(tokens)
    assert found["estimate"]["tokens"] == 4 * 16


@pytest.mark.usefixtures("films")
def test_a_named_entity_is_shown_and_steers_no_terminal(dare: Dare) -> None:
    code, printed, _ = dare("prompt", "show", "--kind", "item", "--entity", "51")
    assert code == 0
    assert 'Introduce the movie "Ghost' in printed
    assert "\x1b[2J" not in printed
    code, _, error = dare("prompt", "show", "--kind", "item", "--entity", "nobody")
    assert code == 2
    assert "the warehouse has no item 'nobody' of domain movies; pull first" in error


@pytest.mark.usefixtures("films")
def test_a_wrong_template_is_named_by_its_line(dare: Dare, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "movies" / "prompts"
    folder.mkdir(parents=True)
    (folder / "item.md.j2").write_text("{% block user %}\nWhat is {{ titel }}?\n{% endblock %}\n", "utf-8")
    for command in (("prompt", "show"), ("domain", "check", "movies")):
        code, _, error = dare(*command)
        assert code == 2
        assert "prompts/item.md.j2:2: there is no field 'titel'; did you mean 'title'?" in error
    (folder / "item.md.j2").write_text("{% block user %}\nWhat is {{ title }}?\n{% endblock %}\n", "utf-8")
    found = figures(dare, "prompt", "show")
    assert found["version"] == f"movies/item@{found['hash']}"


def test_a_domain_is_checked_by_file_tables_columns_and_a_prompt(dare: Dare, engine: Engine) -> None:
    code, _, error = dare("domain", "check", "films")
    assert code == 2
    assert "there are: movies" in error
    code, _, error = dare("domain", "check", "movies")
    assert code == 2
    assert "source table 'items' (source.items.table)" in error
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS source"))
        for table, columns in {
            "items": "item_id, updated_at, title, release_year, genres",
            "users": "user_id, updated_at, age, gender, occupation",
            "ratings": "user_id, item_id, rating",
        }.items():
            typed = ", ".join(f"{column} text" for column in columns.split(", "))
            connection.execute(text(f"CREATE TABLE source.{table} ({typed})"))
    code, _, error = dare("domain", "check", "movies")
    assert code == 2
    assert "no column 'rated_at' (source.interactions.time)" in error
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE source.ratings ADD rated_at text"))
    found = figures(dare, "domain", "check", "movies")
    item, user = found["prompts"]
    assert (item["asked"][0]["entity_id"], user["asked"][0]["entity_id"]) == ("(made up)", "(made up)")
    assert '"<title>" (release year <release_year>; genres <genres>)' in item["asked"][0]["text"]
    assert '- "<title>": <value> stars' in user["asked"][0]["text"]


def test_tables_of_files_are_checked_by_their_first_file(dare: Dare, tmp_path: Path) -> None:
    source = tmp_path / "tables"
    (source / "items").mkdir(parents=True)
    (source / "items" / "part-0.csv").write_text("item_id,updated_at,title,release_year,genres\n", "utf-8")
    (source / "users.csv").write_text("\ufeffuser_id,updated_at,age,gender,occupation\n", "utf-8")
    (source / "ratings.csv").write_text("user_id,item_id,stars,rated_at\n", "utf-8")
    path = tmp_path / "config" / "movies.toml"
    files = f'format = "csv"\nlocation = "{source}"\n'
    shipped = path.read_text("utf-8")
    assert shipped.count('format = "postgres"') == 1
    path.write_text(shipped.replace('format = "postgres"', files + "#"), "utf-8")
    code, _, error = dare("domain", "check", "movies")
    assert code == 2
    assert "source table 'ratings' (source.interactions.table): no column 'rating' (source.interactions.value)" in error
    (source / "ratings.csv").write_text("user_id,item_id,rating,rated_at\n", "utf-8")
    assert "there, with every column" in figures(dare, "domain", "check", "movies")["found"]["tables"]
