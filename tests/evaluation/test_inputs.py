import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dare_core.config.domains import Domain
from dare_core.evaluation.examples import Examples, Sight, Split, make_examples, make_sight, make_splits
from dare_core.evaluation.inputs import Inputs, Vectors, make_inputs, numbers_of_all, numbers_of_vectors
from dare_core.evaluation.service import Entity, entities_in_service
from dare_core.evaluation.source import SourceRows
from dare_core.schemas import KINDS

from .conftest import hour, random_rows, unit_vectors
from .future import other_future

SERVICE = hour(40)
#: ``numbers_of_vectors``: mean, maximum, leaning, ten tiers, cosine, whether the user has a text.
COSINE, HAS_TEXT = -2, -1


def vectors_of(entities: Sequence[Entity]) -> Vectors:
    """A vector of length 1 for each text, which kind, entity and attributes decide."""
    made: dict[str, np.ndarray] = {}
    for kind in KINDS:
        digests = [
            hashlib.sha256(repr((one.kind, one.entity_id, one.data_as_of, one.attributes)).encode()).digest()
            for one in entities
            if one.kind == kind
        ]
        raw = np.array([list(digest) for digest in digests], np.float32).reshape(len(digests), 32) - 100
        made[kind] = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return made


def told(domain: Domain, rows: SourceRows, nightly: bool = False) -> tuple[Examples, Sight, Vectors]:
    examples, entities = make_examples(domain, rows), entities_in_service(domain, rows, SERVICE)
    return examples, make_sight(rows, examples, entities, nightly), vectors_of(entities)


@pytest.mark.parametrize("at_once", [1, 7])
@pytest.mark.parametrize("nightly", [False, True])
def test_another_future_changes_no_number_before_it(soon: Domain, at_once: int, nightly: bool) -> None:
    rows = random_rows(4, 150 * at_once, at_once)
    moment = hour(90)
    changed = other_future(rows, moment)
    known = sum(one.time <= moment for one in rows.interactions)
    split = Split(slice(known - 10), slice(known - 10, known), slice(known, None))
    found = []
    for of in (rows, changed):
        examples, sight, vectors = told(soon, of, nightly)
        of_all, of_vectors = numbers_of_all(examples), numbers_of_vectors(examples, sight, vectors)
        inputs = make_inputs(examples, split, of_all, sight, vectors, of_vectors)
        found.append((of_all, of_vectors, inputs, sight))
    (of_all, of_vectors, inputs, sight), (other_of_all, other_of_vectors, other_inputs, other_sight) = found
    np.testing.assert_array_equal(of_all[:known], other_of_all[:known])
    np.testing.assert_allclose(of_vectors[:known], other_of_vectors[:known], atol=1e-5)
    for name in ("fields", "history", "labels"):
        np.testing.assert_array_equal(getattr(inputs, name)[:known], getattr(other_inputs, name)[:known], err_msg=name)
    np.testing.assert_allclose(inputs.numbers[:known], other_inputs.numbers[:known], atol=1e-3)
    assert inputs.codes == other_inputs.codes
    user, other_user = sight.user[:known], other_sight.user[:known]
    reduced = inputs.vectors["user"][user[user > 0] - 1]
    others = other_inputs.vectors["user"][other_user[user > 0] - 1]
    np.testing.assert_allclose(reduced, others, atol=1e-3)
    # Else nothing was planted, or nothing was there to see.
    assert not np.array_equal(of_all[known:], other_of_all[known:])
    assert not np.allclose(of_vectors[known:], other_of_vectors[known:], atol=1e-5)
    assert (of_vectors[:known, HAS_TEXT] > 0).any()


@pytest.mark.parametrize("at_once", [1, 7])
def test_what_every_arm_knows_is_how_much_the_user_did_and_liked_strictly_before(movies: Domain, at_once: int) -> None:
    rows = random_rows(5, 300, at_once)
    found = numbers_of_all(make_examples(movies, rows))
    for row, one in enumerate(rows.interactions):
        before = [other.value >= 4 for other in rows.interactions if other.user == one.user and other.time < one.time]
        met, likes, recent = len(before), sum(before), before[-10:]
        expected = [
            np.log1p(met),
            np.log1p(likes),
            (likes + 2.5) / (met + 5),
            (sum(recent) + 1.25) / (len(recent) + 2.5),
        ]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)


def test_an_arm_s_numbers_are_of_the_texts_that_the_example_sees(soon: Domain) -> None:
    rows = random_rows(6, 200)
    examples, sight, vectors = told(soon, rows)
    found = numbers_of_vectors(examples, sight, vectors)
    liked = examples.labels > 0
    for row in range(len(examples)):
        item = vectors["item"][sight.item[row] - 1]
        earlier = [place for place in examples.met[row] if place >= 0 and liked[place]]
        cosines = [vectors["item"][sight.item[place] - 1] @ item for place in earlier]
        if cosines:
            np.testing.assert_allclose(found[row, :2], [np.mean(cosines), max(cosines)], atol=1e-5)
            assert found[row, 3:13].sum() == pytest.approx(1)  # the histogram, in shares
        else:
            assert not found[row, :COSINE].any()
        place = sight.user[row]
        assert found[row, HAS_TEXT] == (place > 0)
        assert found[row, COSINE] == pytest.approx(vectors["user"][place - 1] @ item if place else 0, abs=1e-5)
    assert (sight.user > 0).any()
    assert (sight.user == 0).any()


def test_an_item_without_a_text_is_like_nothing(soon: Domain) -> None:
    examples, sight, vectors = told(soon, random_rows(6, 200))
    blind = replace(sight, item=np.zeros_like(sight.item))
    assert not numbers_of_vectors(examples, blind, vectors).any()


def made(domain: Domain, rows: SourceRows, **changed: np.ndarray) -> tuple[Inputs, Sight]:
    examples, sight, vectors = told(domain, rows)
    sight = replace(sight, **changed)
    split = make_splits(domain, examples)[-1]
    numbers = numbers_of_all(examples), numbers_of_vectors(examples, sight, vectors)
    return make_inputs(examples, split, numbers[0], sight, vectors, numbers[1]), sight


def test_numbers_are_scaled_by_what_training_saw(soon: Domain, rows: SourceRows) -> None:
    inputs, _ = made(soon, rows)
    trained = inputs.numbers[inputs.split.train]
    np.testing.assert_allclose(trained.mean(0), 0, atol=1e-5)
    spread = trained.std(0)
    np.testing.assert_allclose(spread[spread > 0], 1, atol=1e-4)
    assert (spread[:4] > 0).all()


def test_a_number_that_never_differed_in_training_is_not_huge_in_tests(soon: Domain, rows: SourceRows) -> None:
    """As whether the user has a text is, where the first came after training."""
    _, sight = made(soon, rows)
    user = sight.user.copy()
    user[:340] = 0
    inputs, _ = made(soon, rows, user=user)
    assert inputs.numbers[inputs.split.train, HAS_TEXT].tolist() == [0] * inputs.split.train.stop
    assert set(inputs.numbers[inputs.split.test, HAS_TEXT].tolist()) <= {0, 1}
    assert inputs.numbers[inputs.split.test, HAS_TEXT].any()
    assert np.abs(inputs.numbers).max() < 100


def test_vectors_have_the_same_width_however_few_texts_training_sees(soon: Domain, rows: SourceRows) -> None:
    inputs, sight = made(soon, rows)
    widths = {kind: of_kind.shape[1] for kind, of_kind in inputs.vectors.items()}
    assert widths["item"] == widths["user"]
    assert [len(inputs.vectors[kind]) for kind in KINDS] == [20, sight.user.max()]
    for kind in KINDS:
        seen = np.unique(getattr(sight, kind)[inputs.split.train])
        known = inputs.vectors[kind][seen[seen > 0] - 1]
        np.testing.assert_allclose(known.mean(0), 0, atol=1e-4)
        cosines = (known @ known.T) / np.outer(*[np.linalg.norm(known, axis=1)] * 2)
        assert np.abs(cosines - np.eye(len(known))).max() < 1 - 1e-3  # still told apart
    unseen, _ = made(soon, rows, user=np.zeros_like(sight.user))
    assert unseen.vectors["user"].shape == inputs.vectors["user"].shape
    assert not unseen.vectors["user"].any()


def test_without_a_user_s_text_there_are_inputs_all_the_same(movies: Domain, rows: SourceRows) -> None:
    never = movies.model_copy(update={"evaluation": movies.evaluation.model_copy(update={"first_events": 10_000})})
    inputs, _ = made(never, rows)
    assert inputs.vectors["user"].shape == (0, inputs.vectors["item"].shape[1])
    assert np.isfinite(inputs.numbers).all()


def test_without_knowledge_all_but_the_first_numbers_is_blank(soon: Domain, rows: SourceRows) -> None:
    inputs, _ = made(soon, rows)
    blank = inputs.without_knowledge(4)
    for name in ("item_texts", "user_texts", "history_texts"):
        assert getattr(inputs, name).any()
        assert not getattr(blank, name).any()
    np.testing.assert_array_equal(blank.numbers[:, :4], inputs.numbers[:, :4])
    assert inputs.numbers[:, 4:].any()
    assert not blank.numbers[:, 4:].any()
    for name in ("fields", "history", "labels"):
        np.testing.assert_array_equal(getattr(blank, name), getattr(inputs, name))


def test_a_history_has_the_codes_of_what_was_liked(soon: Domain, rows: SourceRows) -> None:
    inputs, _ = made(soon, rows)
    examples = make_examples(soon, rows)
    for row in range(len(examples)):
        liked = [place for place in examples.likes[row] if place >= 0]
        assert inputs.history[row].tolist() == [*inputs.fields[liked, 1], *[0] * (10 - len(liked))]


def test_many_texts_are_reduced_to_fewer_dimensions_that_keep_what_differs_most(soon: Domain, rows: SourceRows) -> None:
    examples, sight, _ = told(soon, rows)
    wide = {"item": unit_vectors(300, 96), "user": unit_vectors(300, 96, seed=1)}
    wide["item"][:, 0] += 3 * np.sign(wide["item"][:, 1])  # what differs most
    sight = replace(sight, item=1 + np.arange(len(examples)) % 300)
    numbers = np.zeros((len(examples), 1), np.float32)
    reduced = make_inputs(examples, make_splits(soon, examples)[-1], numbers, sight, wide, numbers).vectors["item"]
    assert reduced.shape[0] == 300
    assert reduced.shape[1] < 96
    assert np.square(reduced).mean() == pytest.approx(1, rel=1e-3)
    assert np.abs(np.corrcoef(reduced[:, 0], wide["item"][:, 0])[0, 1]) > 0.99
