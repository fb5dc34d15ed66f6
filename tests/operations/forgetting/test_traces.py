"""Where an id counts as an id, and in which forms a text is found."""

import html
import json
import re

import pytest

from dare_core.operations.forgetting.traces import Entities, Sought, Traces, id_pattern

SEVEN = Entities("movies", "user", ("7",))
ADA = Entities("movies", "user", ("ada-lovelace",))
TEXT = 'A person who likes "Heat" & <b>quiet</b>\nfilms, as É. said.'


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"kind": "user", "entity_id": "7"}', True),
        ("user_id=7", True),
        ("share of users who rate: 1 of 3 (user 7)", True),
        ("<h3>user 7 <span>Drama</span></h3>", True),
        ("entity_id&#34;: &#34;7&#34;", True),
        ("user 7.", True),
        ("user 77", False),
        ("user 7.5", False),
        ('{"item": 5, "user": 7}', False),
        ("item 7", False),
        ("7 texts in 0.7 s", False),
    ],
)
def test_a_short_id_counts_where_it_is_named_as_one(line: str, found: bool) -> None:
    assert (re.search(id_pattern(SEVEN, ["user_id"]), line) is not None) == found


def test_a_long_id_counts_by_itself_and_not_inside_another() -> None:
    pattern = re.compile(id_pattern(ADA))
    assert pattern.search("failed for ada-lovelace, and")
    assert not pattern.search("failed for ada-lovelace-2")
    assert not pattern.search("failed for not-ada-lovelace")


@pytest.mark.parametrize(
    "form",
    [
        TEXT,
        html.escape(TEXT),
        json.dumps({"text": TEXT}),
        json.dumps({"text": TEXT}, ensure_ascii=False),
        json.dumps({"text": html.escape(TEXT)}),
    ],
)
def test_a_text_is_found_in_plain_text_json_and_html(form: str) -> None:
    sought = Sought(SEVEN, Traces(texts=frozenset([TEXT])))
    assert sought.found_in(b"\xff" + form.encode(), None) == "text or request"
    assert sought.found_in(form.replace("films", "books").encode(), None) is None


def test_a_title_is_found_as_words_of_their_own() -> None:
    sought = Sought(SEVEN, Traces(titles=frozenset(["Ann Lee"])))
    assert sought.found_in(b"seen by Ann Lee, twice", None) == "title"
    assert sought.found_in(b"seen by Joann Leeds", None) is None


def test_traces_are_read_as_they_were_written() -> None:
    traces = Traces(frozenset("r"), frozenset([TEXT]), frozenset(), frozenset([(1, 2), (3,)]))
    assert Traces.of_json(traces.to_json().encode()) == traces
    assert not Traces()
