"""Vectors of the arms, by the bundled encoder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dare_core.config.domains import Domain, Form
from dare_core.config.settings import Settings
from dare_core.embedding.encoder import Encoder
from dare_core.embedding.forms import describe
from dare_core.errors import InputError, SettingError
from dare_core.evaluation import arms
from dare_core.evaluation.arms import LABELS, arm_vectors, choose_arms, embed, written_for
from dare_core.evaluation.inputs import Vectors
from dare_core.evaluation.service import Entity

from .conftest import START

SETTINGS = Settings(device="cpu")
GENRES = ("Crime", "Comedy", "Western", "Horror")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(SETTINGS)


@pytest.fixture(autouse=True)
def _loaded_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "load", lambda settings: encoder)


@pytest.fixture(scope="module")
def entities() -> list[Entity]:
    films = [
        Entity("item", f"i{n}", "g", {"title": f"Film {n}", "release_year": 1990 + n, "genres": [genre]}, START)
        for n, genre in enumerate(GENRES)
    ]
    seen = [{"title": f"Film {n}", "value": 5.0} for n in range(4)]
    users = [
        Entity("user", f"u{n}", "g", {"age": 20 + n, "gender": "F", "occupation": "writer", "history": [film]}, START)
        for n, film in enumerate(seen[:3])
    ]
    return [*films, *users]


@pytest.fixture(scope="module")
def texts(entities: list[Entity]) -> dict[str, list[dict[str, Any]]]:
    strict = [f"A {one.kind} of {genre}." for one, genre in zip(entities, GENRES * 2, strict=False)]
    return {
        "strict": [{"text": text} for text in strict],
        "relaxed": [{"text": f"{text} Loosely."} for text in strict],
        "int8": [{"text": f"{text} Narrowly."} for text in strict],
    }


def encoded(encoder: Encoder, *parts: str) -> np.ndarray:
    """The vector of a passage of these parts."""
    total = encoder.encode(parts).flatten().to_numpy().reshape(len(parts), -1).sum(0)
    return total / np.linalg.norm(total)


def rows_of(vectors: Vectors) -> np.ndarray:
    return np.concatenate([vectors["item"], vectors["user"]])


def test_every_arm_has_a_vector_of_length_one_of_each_entity(
    movies: Domain, entities: list[Entity], texts: dict[str, list[dict[str, Any]]]
) -> None:
    found = arm_vectors(SETTINGS, movies, "attributes+answer", entities, texts)
    assert set(found) == set(LABELS)
    for vectors in found.values():
        assert (len(vectors["item"]), len(vectors["user"])) == (4, 3)
        np.testing.assert_allclose(np.linalg.norm(rows_of(vectors), axis=1), 1, atol=1e-5)
    assert found["nightly"] is found["strict"]


@pytest.mark.parametrize("form", ["answer", "attributes+answer", "history+answer"])
def test_an_arm_s_vectors_are_of_the_form_and_attributes_of_what_the_form_adds(
    movies: Domain, entities: list[Entity], texts: dict[str, list[dict[str, Any]]], encoder: Encoder, form: Form
) -> None:
    found = arm_vectors(SETTINGS, movies, form, entities, texts)
    film, user = "Film 1 (release year 1991; genres Comedy)", "age 21; gender F; occupation writer"
    watched = '- "Film 1": 5 stars'
    of_item = () if form == "answer" else (film,)
    of_user = {"answer": (), "attributes+answer": (user,), "history+answer": (watched,)}[form]
    for arm in ("strict", "relaxed", "int8"):
        item_text, user_text = texts[arm][1]["text"], texts[arm][5]["text"]
        np.testing.assert_allclose(found[arm]["item"][1], encoded(encoder, *of_item, item_text), atol=1e-5)
        np.testing.assert_allclose(found[arm]["user"][1], encoded(encoder, *of_user, user_text), atol=1e-5)
    np.testing.assert_allclose(found["attributes"]["item"][1], encoded(encoder, film), atol=1e-5)
    alone = watched if form == "history+answer" else user
    np.testing.assert_allclose(found["attributes"]["user"][1], encoded(encoder, alone), atol=1e-5)


def test_shuffled_has_the_attributes_of_its_entity_and_the_answer_about_another_one_of_the_kind(
    movies: Domain, entities: list[Entity], texts: dict[str, list[dict[str, Any]]], encoder: Encoder
) -> None:
    found = arm_vectors(SETTINGS, movies, "attributes+answer", entities, texts)["shuffled"]
    others = arms._shuffled(entities)
    for place, entity in enumerate(entities):
        described = describe(movies, entity.kind, entity.attributes)
        expected = encoded(encoder, described, texts["strict"][others[place]]["text"])
        np.testing.assert_allclose(rows_of(found)[place], expected, atol=1e-5)


@pytest.mark.parametrize(("items", "users"), [(2, 2), (7, 3), (40, 60)])
def test_everybody_s_text_goes_to_somebody_else_of_the_kind(items: int, users: int) -> None:
    def make(kind: Any, count: int) -> Sequence[Entity]:
        return [Entity(kind, f"{kind}{n}", "g", {}, START) for n in range(count)]

    entities = [*make("item", items), *make("user", users)]
    others = arms._shuffled(entities)
    assert sorted(others) == list(range(items + users))
    assert (others != np.arange(items + users)).all()
    assert all(entities[place].kind == one.kind for place, one in zip(others, entities, strict=True))
    assert (others == arms._shuffled(entities)).all()


def test_a_text_that_arms_share_is_embedded_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    encode = encoder.encode

    def counted(of: Sequence[str], batch_size: int = 64) -> Any:
        asked.extend(of)
        return encode(of, batch_size)

    monkeypatch.setattr(type(encoder), "encode", lambda self, of: counted(of))
    found = embed(SETTINGS, {"a": [("One.",), ("Two.",)], "b": [("Two.",), ("One.", "Two.")]})
    assert sorted(asked) == ["One.", "Two."]
    assert np.array_equal(found["a"][1], found["b"][0])
    assert not np.array_equal(found["a"][0], found["b"][1])


def test_arms_are_chosen_by_name_or_all_that_can_be_written_here() -> None:
    assert choose_arms(SETTINGS) == list(LABELS)
    assert choose_arms(SETTINGS, ["int8", "strict", "none"]) == ["none", "strict", "int8"]
    for elsewhere in ({"device": "cuda"}, {"engine": "vllm"}, {"dtype": "bfloat16"}):
        settings = SETTINGS.model_copy(update=elsewhere)
        assert choose_arms(settings) == [arm for arm in LABELS if arm != "int8"]
        with pytest.raises(SettingError, match="the arm int8 needs our own engine"):
            choose_arms(settings, ["int8"])
    with pytest.raises(InputError, match="there is no arm int9, loose; arms are none, attributes"):
        choose_arms(SETTINGS, ["strict", "loose", "int9"])


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["none", "attributes"], []),
        (["shuffled"], ["strict"]),
        (["strict", "int8", "nightly"], ["strict", "int8"]),
        (["relaxed"], ["relaxed"]),
        (list(LABELS), ["strict", "relaxed", "int8"]),
    ],
)
def test_texts_are_written_that_the_chosen_arms_read(names: list[str], written: list[str]) -> None:
    assert [arm.name for arm in written_for(names)] == written
