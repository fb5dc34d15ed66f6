"""``features.likeness`` against a reference that looks at every version and every interaction."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from dare_core import schemas
from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.errors import InputError, SourceError
from dare_core.features.examples import EXAMPLE, export_likeness
from dare_core.features.history import export_features
from dare_core.features.likeness import INTERACTIONS, TIERS, likeness
from dare_core.sources.importer import described, import_tables
from dare_core.warehouse import queries
from dare_core.warehouse.connection import connect
from dare_core.warehouse.interactions import register, stream_interactions
from dare_core.warehouse.knowledge import load_knowledge

Rows = Callable[..., pa.Table]
_DAY = datetime(2020, 1, 1, tzinfo=UTC)
_ITEMS = 30
_LIKENESS = "SELECT likes, mean, max, leaning, histogram FROM features.likeness"


class Rating(NamedTuple):
    user_id: str
    item_id: str
    rating: float
    rated_at: datetime


def _ratings() -> list[Rating]:
    """300 of three users in 40 days: several of a user share a moment, and nobody has knowledge of items from 30 on."""
    random = np.random.default_rng(5)
    keys = {
        (f"u{random.integers(3)}", str(random.integers(_ITEMS + 3)), int(random.integers(40) // 2 * 2))
        for _ in range(300)
    }
    return [Rating(user, item, float(random.integers(1, 6)), _DAY + timedelta(days=day)) for user, item, day in keys]


def _source(ratings: list[Rating]) -> dict[str, pa.Table]:
    columns = {name: [getattr(row, name) for row in ratings] for name in Rating._fields}
    table = pa.table({**columns, "rated_at": pa.array(columns["rated_at"], schemas.TIME)})
    return {"ratings": described(table, "test", ["user_id", "item_id", "rated_at"], ["user_id"])}


def _all(engine: Engine, query: str, *values: object) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query, values)]


def _do(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)


@pytest.fixture
def movies(settings: Settings) -> Domain:
    return load_domain(settings, "movies")


@pytest.fixture
def loaded(engine: Engine, movies: Domain, knowledge_rows: Rows, embedding_rows: Rows) -> Engine:
    """Items with one to four versions, some replaced while the ratings went on, and the ratings."""
    random = np.random.default_rng(1)
    for version in range(4):
        ids = [f"{item}" for item in range(_ITEMS) if version == 0 or random.random() < 0.5]
        rows = [
            {
                "request_id": f"i{item}v{version}", "entity_id": item, "epoch": version,
                "data_as_of": _DAY + timedelta(days=int(random.integers(12))),
                "available_at": _DAY + timedelta(days=int(random.integers(3))),
            }
            for item in ids
        ]  # fmt: skip
        vectors = random.normal(size=(len(ids), schemas.EMBEDDING_WIDTH)) + random.choice([0, 0.6, 1.5], (len(ids), 1))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        table = embedding_rows([row["request_id"] for row in rows])
        embedding = pa.FixedSizeListArray.from_arrays(vectors.ravel(), schemas.EMBEDDING_WIDTH)
        table = table.set_column(table.schema.get_field_index("embedding"), table.schema.field("embedding"), embedding)
        load_knowledge(engine, knowledge_rows(rows), table)
    _do(
        engine,
        f"""
        UPDATE knowledge.knowledge SET valid_to = '{_DAY}'::timestamptz + hashtext(request_id) %% 35 * interval '1 day'
        WHERE valid_to IS NOT NULL
    """,
    )
    import_tables(engine, _source(_ratings()))
    assert register(engine, movies)
    return engine


class _Version(NamedTuple):
    item: str
    data_as_of: datetime
    available_at: datetime
    valid_to: datetime | None
    request_id: str
    form: str
    vector: NDArray[np.float32]


def _expected(engine: Engine, asked: list[Rating], ratings: list[Rating]) -> NDArray[np.float32]:
    """The reference, but for the figures, which numpy's definition makes of what was seen."""
    versions = [
        _Version(*row[:6], np.asarray(row[6].to_numpy(), np.float32))
        for row in _all(engine, """
            SELECT entity_id, data_as_of, available_at, valid_to, request_id, form, embedding
            FROM knowledge.knowledge JOIN knowledge.knowledge_embedding USING (domain, request_id)
        """)
    ]  # fmt: skip

    def seen(item: str, moment: datetime) -> int:
        allowed = [
            place
            for place, one in enumerate(versions)
            if one.item == item and one.data_as_of < moment and (one.valid_to is None or one.valid_to > moment)
        ]
        allowed.sort(key=lambda place: versions[place].request_id)
        return max(allowed, key=lambda place: versions[place][1:3], default=-1)

    targets = np.array([seen(row.item_id, row.rated_at) for row in asked])
    met, liked = np.full((len(asked), INTERACTIONS), -1), np.zeros((len(asked), INTERACTIONS), bool)
    for row, target, places, likes in zip(asked, targets, met, liked, strict=True):
        before = [r for r in ratings if r.user_id == row.user_id and r.rated_at < row.rated_at]
        before.sort(key=lambda r: (r.rated_at, r.item_id.encode(), r.rating >= 4), reverse=True)
        for column, earlier in enumerate(before[:INTERACTIONS]):
            place = seen(earlier.item_id, row.rated_at)
            if target >= 0 and versions[place].form == versions[target].form:
                places[column], likes[column] = place, earlier.rating >= 4
    return likeness(np.array([one.vector for one in versions]), targets, met, liked)


def _there(engine: Engine, asked: list[Rating]) -> list[tuple[Any, ...]]:
    return [_all(engine, f"{_LIKENESS}(%s, %s, %s)", r.user_id, r.item_id, r.rated_at)[0] for r in asked]


def _same(found: list[tuple[Any, ...]], expected: NDArray[np.float32]) -> None:
    assert [row[0] for row in found] == expected[:, 0].tolist()
    for column in (1, 2):
        assert [row[column] is None for row in found] == (expected[:, 0] == 0).tolist()
        assert [row[column] or 0 for row in found] == pytest.approx(expected[:, column].tolist(), abs=1e-6)
    assert [row[3] for row in found] == pytest.approx(expected[:, 3].tolist(), abs=1e-5)
    assert [row[4] for row in found] == expected[:, 4:].astype(int).tolist()


def test_it_is_what_numpy_makes_of_what_a_look_at_everything_sees(loaded: Engine) -> None:
    ratings = _ratings()
    asked = ratings[:150]
    expected = _expected(loaded, asked, ratings)
    assert len(set(expected[:, 0].tolist())) > 10
    assert expected[:, 3].min() < -0.1 and expected[:, 3].max() > 0.1
    assert (expected[:, 4:].sum(0) > 0).sum() > 5, "the vectors differ enough to fill tiers"
    _same(_there(loaded, asked), expected)


def test_what_is_compared_has_vectors_that_are_made_of_the_same(loaded: Engine) -> None:
    _do(loaded, "UPDATE knowledge.knowledge_embedding SET form = 'other' WHERE hashtext(request_id) %% 3 = 0")
    ratings = _ratings()
    expected = _expected(loaded, ratings[:60], ratings)
    _same(_there(loaded, ratings[:60]), expected)
    _do(loaded, "UPDATE knowledge.knowledge_embedding SET form = 'answer'")
    assert expected[:, 0].sum() < _expected(loaded, ratings[:60], ratings)[:, 0].sum()


def test_of_more_interactions_the_newest_count_and_of_one_moment_those_of_greater_ids(loaded: Engine) -> None:
    """49 at the newest moments before, and three at the one before those: of these, one has a place."""
    late = _DAY + timedelta(days=100)
    ratings = [Rating("w", "7", 5.0, late - timedelta(minutes=n)) for n in range(1, 50)]
    ratings += [Rating("w", name, 5.0, late - timedelta(hours=1)) for name in ("10", "9", "20")]
    import_tables(loaded, _source(ratings))
    asked = [Rating("w", "9", 5.0, late)]
    [found] = _there(loaded, asked)
    assert found[0] == INTERACTIONS and found[2] == pytest.approx(1, abs=1e-6), "what it has in common with itself"
    assert found[3] == 0, "everything was liked"
    assert sum(found[4]) == INTERACTIONS and len(found[4]) == TIERS
    _same([found], _expected(loaded, asked, ratings))


def test_what_was_not_liked_takes_a_place_among_the_newest(loaded: Engine) -> None:
    late = _DAY + timedelta(days=100)
    ratings = [Rating("w", "7", 1.0, late - timedelta(minutes=n)) for n in range(1, 50)]
    ratings += [Rating("w", "9", 5.0, late - timedelta(hours=hours)) for hours in (1, 2)]
    import_tables(loaded, _source(ratings))
    alike, other = asked = [Rating("w", "9", 5.0, late), Rating("w", "7", 5.0, late)]
    found = _there(loaded, asked)
    assert [row[0] for row in found] == [1, 1]
    assert found[0][3] > 0 > found[1][3], "of items as 9 the user liked all, of items as 7 none"
    _same(found, _expected(loaded, [alike, other], ratings))


def test_of_one_item_and_moment_a_like_counts_as_newer(loaded: Engine, tmp_path: Path) -> None:
    """49 before, and three of one key, of which one has a place; so it is in a table without a primary key alone."""
    late = _DAY + timedelta(days=100)
    ratings = [Rating("w", "7", 1.0, late - timedelta(minutes=n)) for n in range(1, 50)]
    import_tables(loaded, _source([*ratings, Rating("w", "9", 5.0, late)]))
    _add(loaded, "w", "9", late - timedelta(hours=1), ["2", "5", "3"])
    assert _all(loaded, f"{_LIKENESS}('w', '9', '{late}')")[0][0] == 1
    export_features(loaded, "movies", tmp_path)
    export_likeness(loaded, "movies", tmp_path)
    assert pq.read_table(tmp_path / "likeness.parquet")["likes"].to_pylist()[-1] == 1


def test_an_interaction_without_a_value_is_left_out(loaded: Engine, tmp_path: Path) -> None:
    before = _all(loaded, f"{_LIKENESS}('u0', '1')")
    _add(loaded, "u0", "2", _DAY + timedelta(days=50), ["NULL", "'NaN'"] * 30)
    assert _all(loaded, f"{_LIKENESS}('u0', '1')") == before and before[0][0] > 0
    export_features(loaded, "movies", tmp_path)
    assert export_likeness(loaded, "movies", tmp_path) == len(_ratings())


def _add(engine: Engine, user: str, item: str, moment: datetime, values: list[str]) -> None:
    """Ratings that a table of somebody's own may hold."""
    _do(engine, "ALTER TABLE source.ratings DROP CONSTRAINT ratings_pkey")
    rows = ", ".join(f"('{user}', '{item}', {value}, '{moment}')" for value in values)
    _do(engine, f"INSERT INTO source.ratings (user_id, item_id, rating, rated_at) VALUES {rows}")


def test_without_likes_or_knowledge_of_the_item_there_is_one_row_of_none(loaded: Engine) -> None:
    none = (0, None, None, 0, [0] * TIERS)
    assert _all(loaded, f"{_LIKENESS}('nobody', '1')") == [none]
    assert _all(loaded, f"{_LIKENESS}('u0', '31')") == [none]
    assert _all(loaded, f"{_LIKENESS}('u0', '1', '{_DAY}')") == [none], "a like of the moment itself is not before it"
    assert _all(loaded, f"{_LIKENESS}('u0', '1')")[0][0] > 0
    _do(loaded, "UPDATE knowledge.encoder SET in_force = false")
    assert _all(loaded, f"{_LIKENESS}('u0', '1')") == [none]


def test_a_reader_calls_it_and_sees_no_interaction(loaded: Engine, warehouse_url: str) -> None:
    reader = connect(f"{warehouse_url}&options=-c%20role%3Ddare_reader")
    assert _all(reader, f"{_LIKENESS}('u0', '1')") == _all(loaded, f"{_LIKENESS}('u0', '1')")
    for refused in (
        "SELECT * FROM source.ratings",
        "SELECT * FROM knowledge.interaction_source",
        "SELECT knowledge.interaction_query('movies', false)",
        "SELECT knowledge.likeness_query('movies')",
    ):
        with pytest.raises(DBAPIError, match="permission denied"):
            _all(reader, refused)
    reader.dispose()


def test_a_domain_whose_interactions_are_not_known_is_told_what_to_do(
    loaded: Engine, movies: Domain, tmp_path: Path
) -> None:
    with pytest.raises(
        DBAPIError, match=r"no interactions of domain 'films'.*\[evaluation\].*`dare warehouse upgrade`"
    ):
        _all(loaded, f"{_LIKENESS}('u0', '1', domain => 'films')")
    elsewhere = movies.source.model_copy(update={"location": "postgresql://elsewhere/db"})
    for stopped in ({"source": elsewhere}, {"evaluation": None}):
        assert register(loaded, movies)
        assert not register(loaded, movies.model_copy(update=stopped))
        with pytest.raises(DBAPIError, match="no interactions of domain 'movies'"):
            _all(loaded, f"{_LIKENESS}('u0', '1')")
        with pytest.raises(InputError, match=r"query likeness: .*no interactions of domain 'movies'"):
            queries.run(loaded, "likeness", {})
        export_features(loaded, "movies", tmp_path)
        with pytest.raises(SourceError, match="can be joined with what `dare features export` writes"):
            export_likeness(loaded, "movies", tmp_path)
        assert not (tmp_path / "likeness.parquet").exists()


def test_a_table_or_column_that_is_not_there_is_named(loaded: Engine) -> None:
    _do(loaded, "ALTER TABLE source.ratings RENAME COLUMN rating TO stars")
    with pytest.raises(DBAPIError, match=r"interactions source.ratings has no column rating; .*config/movies.toml"):
        _all(loaded, f"{_LIKENESS}('u0', '1')")
    _do(loaded, "DROP TABLE source.ratings")
    with pytest.raises(DBAPIError, match=r"source.ratings.* not there; run `dare source import`"):
        _all(loaded, f"{_LIKENESS}('u0', '1')")
    with pytest.raises(SourceError, match=r"domain movies: .*`dare source import`"):
        list(stream_interactions(loaded, "movies"))


def test_interactions_are_read_by_what_the_domains_file_says_of_them(loaded: Engine, movies: Domain) -> None:
    """Numbers as ids and as times, a value that means none, and names that need quotes."""
    _do(
        loaded,
        """
        CREATE TABLE source."what ""they"" did" AS
        SELECT 7::bigint AS who, item_id::numeric AS "what%%s",
            CASE item_id WHEN '4' THEN 99 ELSE 5.0::float8 END AS value,
            extract(epoch FROM timestamptz '2021-01-01') * 1000 + item_id::int + 0.0009 AS "when"
        FROM (SELECT DISTINCT item_id FROM source.ratings) AS r
        UNION ALL SELECT 7, 1, NULL, 5 UNION ALL SELECT 7, NULL, 5, 5 UNION ALL SELECT 7, 1, 5, NULL
        UNION ALL SELECT 7, 1, 'NaN', 5 UNION ALL SELECT 7, 1, 5, 'NaN'::numeric UNION ALL SELECT 7, 1, 5, 1e18;
    """,
    )
    columns = {
        "table": 'what "they" did', "user": "who", "item": "what%s", "value": "value", "time": "when",
        "time_unit": "milliseconds", "none_values": {"value": [99, "N/A"]},
    }  # fmt: skip
    interactions = type(movies.source.interactions).model_validate(columns)
    changed = movies.model_copy(update={"source": movies.source.model_copy(update={"interactions": interactions})})
    assert register(loaded, changed)
    [read] = stream_interactions(loaded, "movies")
    assert sorted(map(int, read["item_id"].to_pylist())) == [n for n in range(_ITEMS + 3) if n != 4]
    [first] = [row for row in read.to_pylist() if row["item_id"] == "3"]
    assert first["event_timestamp"] == datetime(2021, 1, 1, 0, 0, 0, 3000, tzinfo=UTC), "down to the microsecond"
    assert set(read["user_id"].to_pylist()) == {"7"} and set(read["label"].to_pylist()) == {1}
    moment = "2021-01-01 00:00:00.003"
    assert _all(loaded, f"{_LIKENESS}('7', '1', '{moment}')")[0][0] == 3
    assert _all(loaded, f"{_LIKENESS}('7', '1', '{moment}001')")[0][0] == 4
    assert _all(loaded, f"{_LIKENESS}('07', '1')")[0][0] == 0


def test_rows_that_run_code_of_others_are_not_read_with_the_owners_rights(loaded: Engine, warehouse_url: str) -> None:
    """A loader may make tables in `source`; what it puts there must not run as the warehouse's owner."""
    loader = connect(f"{warehouse_url}&options=-c%20role%3Ddare_loader")
    for make in (
        "CREATE VIEW source.theirs AS SELECT 'u'::text AS user_id, '1'::text AS item_id, 5 AS rating, now() rated_at",
        "CREATE TABLE source.theirs (user_id text, item_id text, rating int, rated_at timestamptz); "
        "ALTER TABLE source.theirs ENABLE ROW LEVEL SECURITY",
        "CREATE TYPE source.their_id AS ENUM ('u'); "
        "CREATE TABLE source.theirs (user_id source.their_id, item_id text, rating int, rated_at timestamptz)",
    ):
        _do(loader, make)
        _do(loader, "UPDATE knowledge.interaction_source SET table_name = 'theirs'")
        with pytest.raises(DBAPIError, match=r"source.theirs is no plain table .* name a plain table"):
            _all(loaded, f"{_LIKENESS}('u', '1')")
        _do(loader, f"DROP {'VIEW' if 'VIEW' in make else 'TABLE'} source.theirs")
    plain = "CREATE TABLE source.theirs (user_id text, item_id text, rating int, rated_at timestamptz)"
    _do(loader, plain)
    assert _all(loaded, f"{_LIKENESS}('u', '1')")[0][0] == 0
    loader.dispose()


def test_a_call_looks_knowledge_up_by_its_index(loaded: Engine) -> None:
    with loaded.connect() as connection:
        [statement] = connection.exec_driver_sql("SELECT knowledge.likeness_query('movies')").one()
        for switch in ("enable_seqscan", "enable_bitmapscan"):  # the rows are too few for the planner to want an index
            connection.exec_driver_sql(f"SET {switch} = off")
        connection.exec_driver_sql(f"PREPARE asked (text, timestamptz, text) AS {statement.replace('%', '%%')}")
        plan = "\n".join(connection.exec_driver_sql("EXPLAIN EXECUTE asked ('u0', now(), '1')").scalars())
        connection.invalidate()
    assert len(re.findall(r"Index Scan using knowledge_movies_\w+data_as_of_idx on knowledge_movies", plan)) == 2
    assert "Seq Scan" not in plan and plan.count("entity_id = ") == 2
    assert "(user_id = 'u0'::text)" in plan, "and the user's interactions by the index of theirs"


def test_the_query_gives_training_rows_and_the_export_the_same(
    loaded: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dare_core.warehouse.interactions._ROWS_PER_BATCH", 70)  # users begin and end within batches
    _do(loaded, "UPDATE knowledge.knowledge_embedding SET form = 'other' WHERE hashtext(request_id) %% 5 = 0")
    export_features(loaded, "movies", tmp_path)
    ratings = _ratings()
    assert export_likeness(loaded, "movies", tmp_path) == len(ratings)
    table = pq.read_table(tmp_path / "likeness.parquet")
    assert table.schema.equals(EXAMPLE)
    rows = table.to_pylist()
    assert [(r["user_id"], r["event_timestamp"], r["item_id"]) for r in rows] == sorted(
        (r.user_id, r.rated_at, r.item_id) for r in ratings
    )
    assert all(row["label"] == int(row["value"] >= 4) for row in rows)
    asked = [Rating(row["user_id"], row["item_id"], row["value"], row["event_timestamp"]) for row in rows]
    columns = [(row["likes"], row["mean"], row["max"], row["leaning"], row["histogram"]) for row in rows]
    _same(columns, _expected(loaded, asked, ratings))
    answer = queries.run(loaded, "likeness", {"limit": "40"})
    assert answer.columns == ("user_id", "item_id", "value", "moment", "likes", "mean", "max", "leaning", "histogram")
    newest = sorted(ratings, key=lambda r: (-r.rated_at.timestamp(), r.user_id, r.item_id))[:40]
    assert [row[:4] for row in answer.rows] == [tuple(r) for r in newest]
    _same([row[4:] for row in answer.rows], _expected(loaded, newest, ratings))
