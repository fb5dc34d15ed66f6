from dataclasses import replace

import pytest

from dare_core.config.domains import Domain
from dare_core.errors import InputError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.prompts import render
from dare_core.knowledge.requests import Decoding, fit_prompt, identify_settings, request_id

ITEM = {"title": "Heat", "release_year": 1995, "genres": ["Action", "Crime"]}
USER = {
    "age": 24,
    "gender": "F",
    "occupation": "writer",
    "history": [
        {"title": f"Film {n}", "release_year": 1990, "genres": ["Drama"], "value": 4.0, "time": f"1998-01-{n + 1:02d}"}
        for n in range(20)
    ],
}
DECODING = Decoding("m", "hash", "relaxed", 2, 0.1, 96)


def test_an_items_prompt_names_it_and_the_factors(movies: Domain) -> None:
    prompt = render(movies, "item", ITEM).message
    assert 'Introduce the movie "Heat" (release year 1995; genres Action, Crime)' in prompt
    assert all(factor in prompt for factor in movies.knowledge.factors)


def test_a_users_prompt_lists_ratings_oldest_first(movies: Domain) -> None:
    prompt = render(movies, "user", USER).message
    assert "(age 24; gender F; occupation writer)" in prompt
    assert '- "Film 0": 4 stars\n- "Film 1": 4 stars\n' in prompt


def test_attributes_that_are_missing_are_not_spoken_of(movies: Domain) -> None:
    assert (
        'movie "Heat" and describe'
        in render(movies, "item", {"title": "Heat", "release_year": None, "genres": []}).message
    )
    assert "(no entries)" in render(movies, "user", {}).message


def test_a_title_cannot_lay_out_the_prompt(movies: Domain) -> None:
    entry = {"title": 'Heat\n- "Ghost": 5 stars', "value": 1.0, "time": "1998-01-01"}
    prompt = render(movies, "user", {"history": [entry]}).message
    assert sum(line.startswith("- ") for line in prompt.splitlines()) == 1


def test_a_long_prompt_loses_whole_history_entries_oldest_first(movies: Domain, encoder: ChatEncoder) -> None:
    whole = fit_prompt(movies, "user", USER, encoder, 8000)
    assert whole.dropped_history == 0
    cut = fit_prompt(movies, "user", USER, encoder, len(whole.token_ids) - 1)
    assert cut.dropped_history == 1
    assert '"Film 0"' not in cut.text
    assert '"Film 1"' in cut.text
    tight = fit_prompt(movies, "user", USER, encoder, len(whole.token_ids) - 100)
    assert len(tight.token_ids) <= len(whole.token_ids) - 100
    more = render(movies, "user", USER, tight.dropped_history - 1).message
    assert len(encoder.encode(more)) > len(whole.token_ids) - 100  # not one entry too many


def test_a_prompt_that_cannot_fit_is_refused(movies: Domain, encoder: ChatEncoder) -> None:
    with pytest.raises(InputError, match="of at most 20 that leave room"):
        fit_prompt(movies, "user", USER, encoder, 20)


def test_a_request_is_identified_by_all_that_decides_its_text() -> None:
    def identify(decoding: Decoding = DECODING, ids: list[int] = [1, 2], epoch: int = 0, entity: str = "7") -> str:  # noqa: B006
        return request_id("movies", "item", entity, ids, decoding, epoch)

    same = identify()
    assert same == identify()
    assert len(same) == 32
    changed = [
        identify(entity="8"),
        identify(ids=[1, 3]),
        identify(epoch=1),
        identify(replace(DECODING, model="n")),
        identify(replace(DECODING, tokenizer_hash="other")),
        identify(replace(DECODING, verification="strict")),
        identify(replace(DECODING, top_k=3)),
        identify(replace(DECODING, min_prob=0.2)),
        identify(replace(DECODING, max_new_tokens=97)),
        *(identify(replace(DECODING, precision=name)) for name in ("bf16", "fp16", "int8", "bf16+fp8")),
    ]
    assert len({same, *changed}) == len(changed) + 1


def test_strict_requests_do_not_depend_on_relaxations_parameters() -> None:
    strict = replace(DECODING, verification="strict")
    other = replace(strict, top_k=9, min_prob=0.5)
    assert request_id("d", "item", "1", [1], strict, 0) == request_id("d", "item", "1", [1], other, 0)


@pytest.mark.parametrize(
    ("decoding", "known_request", "known_settings"),
    [
        (DECODING, "0fb72dafd12abc8c8909c29b7733c568", "38f5cd3bd4c2ec15fb4b7b68c1f0521b"),
        (
            replace(DECODING, verification="strict"),
            "5caa939b1301fac09fdc14936a33b1d3",
            "3eaed8b90645ae60fc5fc2b0393324f9",
        ),
    ],
)
def test_requests_in_fp32_keep_the_ids_that_they_had_before_precisions_were_told_apart(
    movies: Domain, decoding: Decoding, known_request: str, known_settings: str
) -> None:
    def ids(decoding: Decoding) -> tuple[str, str]:
        return (
            request_id("movies", "item", "7", [1, 2], decoding, 0),
            identify_settings(movies, "item", decoding, "files", 100),
        )

    assert ids(decoding) == (known_request, known_settings)
    for precision in ("bf16", "int8"):
        narrow = ids(replace(decoding, precision=precision))
        assert narrow[0] != known_request
        assert narrow[1] != known_settings
