"""What a vector is made of, by the domain's form."""

from datetime import UTC, datetime
from typing import Any

import pytest

from dare_core.config.domains import Domain
from dare_core.embedding.encoder import Encoder
from dare_core.embedding.forms import HISTORY_BYTES, Passage, describe, describe_history, passage

HEAT = {"title": "Heat", "release_year": 1995, "genres": ["Crime", "Drama"]}
SAW_TWO = {
    "age": 24,
    "gender": "F",
    "occupation": "writer",
    "history": [
        {"title": "Alien", "value": 5, "time": "1997-12-01T08:00:00"},
        {"title": "Heat", "value": 2, "time": "1997-12-02T08:00:00"},
    ],
}


def day(number: int) -> datetime:
    return datetime(1997, 12, number, tzinfo=UTC)


def test_attributes_name_a_film_by_its_title_and_say_nothing_of_a_user_s_history(movies: Domain) -> None:
    assert describe(movies, "item", HEAT) == "Heat (release year 1995; genres Crime, Drama)"
    assert describe(movies, "user", SAW_TWO) == "age 24; gender F; occupation writer"


def test_attributes_without_a_value_are_left_out(movies: Domain) -> None:
    assert describe(movies, "item", {"title": "Heat", "release_year": None, "genres": []}) == "Heat"
    assert describe(movies, "user", {"age": 0, "gender": ""}) == "age 0"
    assert describe(movies, "user", {"history": []}) == ""


def test_a_history_is_listed_as_prompts_do_up_to_a_moment_inclusive(movies: Domain) -> None:
    both = '- "Alien": 5 stars\n- "Heat": 2 stars'
    assert describe_history(movies, SAW_TWO) == describe_history(movies, SAW_TWO, day(3)) == both
    on_time = datetime(1997, 12, 2, 8, tzinfo=UTC)
    assert describe_history(movies, SAW_TWO, on_time) == both
    assert describe_history(movies, SAW_TWO, on_time.replace(hour=7)) == '- "Alien": 5 stars'
    assert describe_history(movies, SAW_TWO, day(1)) == ""


def test_entries_whose_time_is_not_known_are_not_before_a_moment(movies: Domain) -> None:
    timeless = {"history": [{"title": "Alien", "value": 5}, {"title": " "}]}
    assert describe_history(movies, timeless) == '- "Alien": 5 stars'
    assert describe_history(movies, timeless, day(9)) == ""


def test_a_time_with_its_own_zone_is_compared_as_a_moment(movies: Domain) -> None:
    abroad = {"history": [{"title": "Alien", "time": "1997-12-02T01:00:00+02:00"}]}
    assert describe_history(movies, abroad, day(2)) == '- "Alien"'
    assert describe_history(movies, abroad, day(1)) == ""


@pytest.mark.parametrize("title", ["It {}", "The Usual Suspects, part {}", "七人の侍、その{}"])
def test_of_a_long_history_the_encoder_reads_the_newest_entries(movies: Domain, encoder: Encoder, title: str) -> None:
    entries = [{"title": title.format(number), "value": 4} for number in range(100)]
    lines = describe_history(movies, {"history": entries}).splitlines()
    assert lines[-1] == f'- "{title.format(99)}": 4 stars'
    assert 10 < len(lines) < 100
    shown = "\n".join(lines)
    assert len(shown.encode()) <= HISTORY_BYTES
    assert len(encoder.model.tokenizer.encode(shown)) <= 256


def test_one_entry_is_shown_however_long_its_title(movies: Domain) -> None:
    entries = [{"title": "short"}, {"title": "long " * 400}]
    assert describe_history(movies, {"history": entries}).startswith('- "long long')


@pytest.mark.parametrize(
    ("kind", "form", "attributes", "made"),
    [
        ("item", "answer", HEAT, Passage("answer", ("A heist.",))),
        (
            "item",
            "attributes+answer",
            HEAT,
            Passage("attributes+answer", ("Heat (release year 1995; genres Crime, Drama)", "A heist.")),
        ),
        (
            "item",
            "history+answer",
            HEAT,
            Passage("history+answer", ("Heat (release year 1995; genres Crime, Drama)", "A heist.")),
        ),
        (
            "user",
            "attributes+answer",
            SAW_TWO,
            Passage("attributes+answer", ("age 24; gender F; occupation writer", "A heist.")),
        ),
        ("user", "history+answer", SAW_TWO, Passage("history+answer", ('- "Alien": 5 stars', "A heist."))),
        ("user", "history+answer", {"age": 24, "history": []}, Passage("history+answer", ("A heist.",))),
        ("user", "attributes+answer", {"history": SAW_TWO["history"]}, Passage("attributes+answer", ("A heist.",))),
        ("user", "history+answer", None, Passage("answer", ("A heist.",))),
    ],
)
def test_a_passage_has_the_parts_of_its_form_and_the_answer_last(
    movies: Domain, kind: Any, form: Any, attributes: dict[str, Any] | None, made: Passage
) -> None:
    assert passage(movies, kind, form, attributes, "A heist.", day(2)) == made
