import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from dare_core.config.domains import TextQuality
from dare_core.errors import QualityError, StorageError
from dare_core.quality.findings import Finding
from dare_core.quality.texts import ShardCounts, Validation, judge_run, validate
from dare_core.schemas import KNOWLEDGE, QUARANTINE

GOOD = "A quiet drama about two brothers who come home, and about what neither of them says."
LOOP = "It is a film about a film. " * 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def staged(*texts: str, **columns: list[object]) -> pa.Table:
    """Rows with request ids r0, r1, ...; ``columns`` replaces whole columns."""
    constant: dict[pa.DataType, object] = {
        pa.string(): "x",
        pa.int32(): 1,
        pa.float64(): 0.5,
        pa.list_(pa.int32()): [1, 2],
        pa.timestamp("us", tz="UTC"): NOW,
    }
    values = {field.name: [constant[field.type]] * len(texts) for field in KNOWLEDGE}
    values |= {
        "request_id": [f"r{row}" for row in range(len(texts))],
        "text": list(texts),
        "max_new_tokens": [96] * len(texts),
        "new_tokens": [90] * len(texts),
        **columns,
    }
    return pa.table(values, schema=KNOWLEDGE)


def check(
    table: pa.Table,
    planned: list[str] | None = None,
    attributes: dict[tuple[str, str], str] | None = None,
    **rules: object,
) -> Validation:
    ids = table["request_id"].to_pylist() if planned is None else planned
    return validate(table, ids, attributes or {}, TextQuality.model_validate(rules), "run")


def counts(shard: str = "item-0000", requests: int = 4, lost: int = 0, **by_rule: int) -> ShardCounts:
    return ShardCounts(shard, requests, requests, lost, by_rule)


def judge(docs: Path, run_id: str = "run", *shards: ShardCounts, share: float = 0.25) -> list[Finding]:
    return judge_run(list(shards) or [counts()], share, docs, run_id)


def broken(outcome: Validation) -> set[tuple[str, str]]:
    rows = outcome.quarantine.to_pylist()
    return {(row["request_id"], row["rule"]) for row in rows}


def pages(docs: Path, run_id: str) -> list[Path]:
    return list((docs / "validations").glob(f"*/{run_id}/*/*.html"))


def test_good_texts_pass() -> None:
    table = staged(GOOD, GOOD + " Quite.")
    outcome = check(table)
    assert outcome.passed.equals(table)
    assert outcome.quarantine.schema == QUARANTINE
    assert len(outcome.quarantine) == 0


def test_the_docs_show_the_sums_of_a_run_and_each_shard_that_lost_texts(tmp_path: Path) -> None:
    found = judge(tmp_path, "run", counts(), counts("user-0000", 4, 2, length=1, blank=2))
    assert [(each.severity, each.sentence) for each in found] == [
        ("warning", "blank: 1 of 2 (user-0000)"),
        ("warning", "length: 1 of 2 (user-0000)"),
    ]
    assert "run" in (tmp_path / "index.html").read_text()
    [page] = pages(tmp_path, "run")
    assert "user-0000" in page.read_text() and "item-0000" not in page.read_text()


def test_a_run_that_loses_more_than_its_share_or_has_not_one_answer_to_a_request_is_stopped(tmp_path: Path) -> None:
    lost = [counts(lost=1, length=1), counts("item-0001", 4, 2, length=2)]
    [critical] = [each for each in judge(tmp_path, "run", *lost) if each.severity == "critical"]
    assert critical.sentence == "texts lost: 3, expected 0 to 2"
    assert not [each for each in judge(tmp_path, "run", *lost, share=0.4) if each.severity == "critical"]
    [critical] = judge(tmp_path, "run", counts(), ShardCounts("item-0001", 4, 3, 1, {}))
    assert critical.sentence == "one answer to every request: 1 of 2 (item-0001)"


def test_each_rule_names_the_row_that_breaks_it() -> None:
    texts = ["", "Too short.", GOOD * 300, LOOP, GOOD + "\x00" * 5, GOOD, GOOD]
    outcome = check(staged(*texts, new_tokens=[9, 9, 9, 9, 9, 97, 96]))
    assert broken(outcome) == {
        ("r0", "blank"),
        ("r0", "length"),
        ("r0", "language"),
        ("r1", "length"),
        ("r1", "language"),
        ("r2", "length"),
        ("r2", "repetition"),
        ("r3", "repetition"),
        ("r4", "unprintable"),
        ("r5", "token_budget"),
    }
    assert outcome.passed["request_id"].to_pylist() == ["r6"]


def test_a_quarantined_row_says_what_was_measured_and_keeps_its_text() -> None:
    outcome = check(staged(GOOD, "<b>short</b>", entity_id=["1", "A&B"]))
    [row] = [row for row in outcome.quarantine.to_pylist() if row["rule"] == "length"]
    assert outcome.refused["text"].to_pylist() == ["<b>short</b>"]
    moment = row.pop("quarantined_at")
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    assert row == {
        "request_id": "r1",
        "rule": "length",
        "domain": "x",
        "kind": "x",
        "entity_id": "A&B",
        "run_id": "run",
        "value": "12",
        "text": "<b>short</b>",
    }
    assert outcome.passed["request_id"].to_pylist() == ["r0"]


def test_a_share_is_stored_with_three_digits() -> None:
    outcome = check(staged(LOOP, GOOD))
    # a loop of 7 words, 64 words read: 61 four-grams, 7 of them different
    assert outcome.quarantine["value"].to_pylist() == ["0.885"]


def test_what_a_text_says_is_judged_by_its_prompt_its_language_and_its_entity() -> None:
    prompt = "Introduce the movie Heat and describe its attributes, including genre, director, plot and theme."
    texts = [
        GOOD,
        "Stille Nacht ist der Film über zwei Brüder, die nach Hause kommen und nicht reden.",
        "Sure! Introduce the movie Heat and describe its attributes, including genre, director, plot.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but the film Heat is one that I can say nothing about at all.",
        "It is a story about a family and the house in which they live, and of what is lost.",
        "Heat is the story of a thief who is about to retire and of the policeman at his heels.",
    ]
    about = {("x", "film"): json.dumps({"title": "Heat", "genres": ["Crime"], "history": []})}
    entities = ["?", "?", "film", "film", "film", "film"]
    table = staged(*texts, prompt=[prompt] * 6, entity_id=entities, relaxed=[0, 0, 0, 0, 0, 60])
    outcome = check(table, attributes=about)
    assert broken(outcome) == {
        ("r1", "language"),
        ("r2", "echo"),
        ("r3", "refusal"),
        ("r4", "off_topic"),
        ("r5", "relaxed"),
    }
    values = {row["rule"]: row["value"] for row in outcome.quarantine.to_pylist()}
    assert (values["refusal"], values["off_topic"], values["relaxed"]) == ("i'm sorry", "0", "0.667")
    assert (
        len(
            check(
                table,
                attributes=about,
                language="any",
                max_echo=1,
                refusals=[],
                min_own_words=0,
                max_relaxed=1,
            ).passed
        )
        == 6
    )


def test_limits_can_be_set() -> None:
    table = staged("short", "brief", GOOD)
    assert len(check(table, min_characters=5, language="any").passed) == 3


def test_nothing_planned_passes() -> None:
    outcome = check(KNOWLEDGE.empty_table())
    assert len(outcome.passed) == len(outcome.quarantine) == 0


def test_a_planned_request_without_a_row_fails_the_run() -> None:
    with pytest.raises(QualityError, match=r"run run .*every planned request: 1 rows, not 3.*missing: r1, r2$"):
        check(staged(GOOD), planned=["r0", "r1", "r2"])


def test_no_rows_at_all_where_some_were_planned_fail_the_run() -> None:
    with pytest.raises(QualityError, match="missing: r0"):
        check(KNOWLEDGE.empty_table(), planned=["r0"])


def test_a_row_that_nobody_planned_fails_the_run() -> None:
    with pytest.raises(QualityError, match="planned requests only: r1"):
        check(staged(GOOD, GOOD), planned=["r0"])


def test_a_doubled_request_fails_the_run_even_when_the_count_is_right() -> None:
    with pytest.raises(QualityError, match=r"one row per request: r0;.*missing: r1"):
        check(staged(GOOD, GOOD, request_id=["r0", "r0"]), planned=["r0", "r1"])


def test_many_ids_are_counted_not_listed() -> None:
    with pytest.raises(QualityError, match="missing: r1, r2, r3 and 5 more"):
        check(staged(GOOD), planned=[f"r{row}" for row in range(9)])


def test_a_column_too_few_or_too_many_fails_the_run() -> None:
    table = staged(GOOD)
    with pytest.raises(QualityError, match=r"columns: .*missing.*text"):
        check(table.drop_columns(["text"]))
    with pytest.raises(QualityError, match=r"columns: .*unexpected.*mood"):
        check(table.append_column("mood", pa.array(["calm"])))


def test_a_column_of_another_type_fails_the_run() -> None:
    table = staged(GOOD)
    position = table.column_names.index("steps")
    with pytest.raises(QualityError, match="steps is string, not int32"):
        check(table.set_column(position, "steps", pa.array(["7"])))


def test_a_missing_value_where_one_is_required_fails_the_run() -> None:
    with pytest.raises(QualityError, match="required values: r1"):
        check(staged(GOOD, GOOD, model=["m", None]))
    with pytest.raises(QualityError, match="required values: r0"):
        check(staged(GOOD, GOOD, text=[None, GOOD]))
    with pytest.raises(QualityError, match="required values: r1"):
        check(staged(GOOD, GOOD, new_tokens=[9, None]))


def test_an_optional_value_may_be_missing() -> None:
    assert len(check(staged(GOOD, pool_version=[None])).passed) == 1


def test_a_text_of_markup_is_kept_as_it_is() -> None:
    attack = "<script>alert(1)</script>"
    outcome = check(staged(attack, GOOD, entity_id=["<img src=x onerror=alert(2)>", "1"]))
    assert set(outcome.quarantine["text"].to_pylist()) == {attack}


def test_runs_accumulate_and_a_repeated_run_replaces_its_result(tmp_path: Path) -> None:
    judge(tmp_path, "first", counts(lost=1, length=1))
    before = pages(tmp_path, "first")
    judge(tmp_path, "profiling-2")
    assert pages(tmp_path, "first") == before
    judge(tmp_path, "first")
    assert len(pages(tmp_path, "first")) == len(pages(tmp_path, "profiling-2")) == 1
    assert pages(tmp_path, "first") != before
    index = (tmp_path / "index.html").read_text()
    assert index.count("'run_name': 'first'") == index.count("'run_name': 'profiling-2'") == 1


def test_runs_that_are_judged_at_the_same_time_all_reach_the_index(tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda name: (judge(tmp_path, name), check(staged(GOOD, "short"))), names))
    assert all({request for request, _ in broken(outcome)} == {"r1"} for _, outcome in found)
    index = (tmp_path / "index.html").read_text()
    assert all(f"'run_name': '{name}'" in index for name in names)


def test_processes_judge_into_one_folder_quietly_and_write_nowhere_else(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_texts import GOOD, check, judge, staged
assert len(check(staged(GOOD)).passed) == 1
assert judge(Path("docs"), sys.argv[1]) == []
assert judge(Path("docs"), sys.argv[1]) == []
"""
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, name],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("left", "right")
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert said == ["", ""]
    assert len(pages(tmp_path / "docs", "left")) == len(pages(tmp_path / "docs", "right")) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"docs", "home"}
    assert not list((tmp_path / "home").rglob("*great_expectations*"))


def test_great_expectations_is_imported_only_when_it_is_used() -> None:
    program = "import sys, dare_core.quality.texts; assert 'great_expectations' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_result_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge(tmp_path / "docs")
    results = sorted((tmp_path / "docs" / "results").rglob("*.json"))
    before = [path.read_bytes() for path in results]
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        judge(tmp_path / "docs", "next")
    monkeypatch.undo()
    assert [path.read_bytes() for path in results] == before
    assert not list((tmp_path / "docs").rglob(".writing-*"))
    assert judge(tmp_path / "docs", "next") == []
