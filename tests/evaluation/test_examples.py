from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest

from dare_core.config.domains import Domain
from dare_core.errors import InputError, SettingError
from dare_core.evaluation.examples import (
    HISTORY,
    ITEM,
    SPLITS,
    USER,
    Examples,
    Sight,
    known_codes,
    make_examples,
    make_sight,
    make_splits,
)
from dare_core.evaluation.service import Entity, entities_in_service
from dare_core.evaluation.source import Interaction, SourceRows
from dare_core.features.likeness import INTERACTIONS

from .conftest import ITEMS, START, hour, random_rows, source_rows
from .future import other_future

SERVICE = hour(40)


def looked_at(domain: Domain, rows: SourceRows, nightly: bool) -> tuple[Examples, list[Entity], Sight]:
    examples, entities = make_examples(domain, rows), entities_in_service(domain, rows, SERVICE)
    return examples, entities, make_sight(rows, examples, entities, nightly)


def seen(entities: list[Entity], kind: str, places: np.ndarray) -> list[tuple[str, datetime, str] | None]:
    """Which texts these are, however many others there are; with what the prompt shows."""
    of_kind = [one for one in entities if one.kind == kind]
    texts = [None, *((one.entity_id, one.data_as_of, repr(one.attributes)) for one in of_kind)]
    return [texts[place] for place in places.ravel()]


@pytest.mark.parametrize("at_once", [1, 7])
@pytest.mark.parametrize("moment", [60, 90])
@pytest.mark.parametrize("nightly", [False, True])
def test_another_future_changes_nothing_before_it(soon: Domain, at_once: int, moment: int, nightly: bool) -> None:
    rows = random_rows(moment, 150 * at_once, at_once)
    changed = other_future(rows, hour(moment))
    known = sum(one.time <= hour(moment) for one in rows.interactions)
    examples, entities, sight = looked_at(soon, rows, nightly)
    others, other_entities, other_sight = looked_at(soon, changed, nightly)

    def there(of: list[Entity]) -> list[Entity]:
        return [one for one in of if one.data_as_of <= hour(moment)]

    assert there(entities) == there(other_entities)
    assert any(one.kind == "user" for one in there(entities))
    for name in ("times", "met", "likes", "labels"):
        np.testing.assert_array_equal(getattr(examples, name)[:known], getattr(others, name)[:known], err_msg=name)
    np.testing.assert_array_equal(
        known_codes(examples.fields, examples.fields[:known])[0][:known],
        known_codes(others.fields, others.fields[:known])[0][:known],
    )
    for name in vars(sight):
        kind = "user" if name == "user" else "item"
        honest, planted = (
            seen(of, kind, getattr(one, name)[:known]) for of, one in ((entities, sight), (other_entities, other_sight))
        )
        assert honest == planted, name
    # Else nothing was planted, or nothing was there to see.
    assert entities != other_entities
    assert (examples.labels != others.labels).any()
    assert (sight.user[:known] > 0).any()
    assert (sight.met[:known] > 0).any()


@pytest.mark.parametrize("at_once", [1, 7])
def test_what_an_example_sees_was_there_strictly_before_it(soon: Domain, at_once: int) -> None:
    rows = random_rows(1, 300, at_once)
    examples, entities, sight = looked_at(soon, rows, nightly=False)
    users = [entity for entity in entities if entity.kind == "user"]
    for row, one in enumerate(rows.interactions):
        before = [n for n, other in enumerate(rows.interactions) if other.user == one.user and other.time < one.time]
        liked = [n for n in before if rows.interactions[n].value >= 4]
        assert [n for n in examples.met[row] if n >= 0] == before[::-1][:INTERACTIONS]
        assert [n for n in examples.likes[row] if n >= 0] == liked[::-1][:HISTORY]
        there = [n for n, text in enumerate(users, 1) if text.entity_id == one.user and text.data_as_of < one.time]
        assert sight.user[row] == (there[-1] if there else 0)
    assert (sight.user > 0).any()


def test_an_item_s_text_is_seen_from_its_row_on_also_where_the_item_was_met_before(soon: Domain) -> None:
    met = [Interaction(hour(n), "u0", f"i{n % 3}", 5.0) for n in range(1, 10)]
    rows = source_rows(met)
    rows = replace(rows, items={**rows.items, "i1": {**rows.items["i1"], "updated_at": hour(4)}})
    _, entities, sight = looked_at(soon, rows, nightly=False)
    place = 1 + [one.entity_id for one in entities].index("i1")
    assert sight.item[[0, 3, 6]].tolist() == [0, 0, place]  # at 1, at 4, the row's own moment, and at 7
    assert (sight.met == place).sum(1).tolist() == [0, 0, 0, 0, 2, 2, 2, 3, 3]
    assert (sight.likes == place).sum(1).tolist() == [0, 0, 0, 0, 2, 2, 2, 3, 3]
    _, _, late = looked_at(soon, rows, nightly=True)
    assert not (late.item == place).any()  # the midnight after comes later than all


def test_nightly_texts_are_seen_from_the_midnight_after(soon: Domain) -> None:
    rows = source_rows([Interaction(hour(n), "u0", f"i{n % ITEMS}", 5.0) for n in range(1, 60)])
    examples, _, sight = looked_at(soon, rows, nightly=False)
    _, entities, late = looked_at(soon, rows, nightly=True)
    users = [entity for entity in entities if entity.kind == "user"]
    assert [one.data_as_of for one in users] == [hour(40), hour(50)]
    hours = np.arange(1, 60)
    assert sight.user.tolist() == ((hours > 40) + 1 * (hours > 50)).tolist()
    assert late.user.tolist() == (2 * (hours >= 72) + 1 * ((hours >= 48) & (hours < 72))).tolist()
    assert len(examples) == 59


def test_a_history_holds_the_newest_likes_before_the_example_and_nothing_of_its_own_moment(movies: Domain) -> None:
    hours = [*range(1, 2 * HISTORY), 50, 50, 51]  # two at once
    met = [Interaction(hour(at), "u0", f"i{n}", 5.0) for n, at in enumerate(hours)]
    met += [Interaction(hour(60 + n), "u1", f"i{n}", 1.0 + n % 5) for n in range(2 * len(hours))]
    examples = make_examples(movies, source_rows(met, items=len(hours)))
    assert examples.likes[0].tolist() == [-1] * HISTORY
    assert examples.likes[3].tolist() == [2, 1, 0, *[-1] * (HISTORY - 3)]
    first, second = len(hours) - 3, len(hours) - 2
    assert examples.likes[first].tolist() == examples.likes[second].tolist()
    assert examples.likes[first].tolist() == list(range(first - 1, first - 1 - HISTORY, -1))


def test_a_rating_of_four_stars_is_a_like(movies: Domain, rows: SourceRows) -> None:
    assert make_examples(movies, rows).labels.tolist() == [float(one.value >= 4) for one in rows.interactions]


def test_a_domain_that_does_not_say_what_a_like_is_cannot_be_evaluated(movies: Domain, rows: SourceRows) -> None:
    silent = movies.model_copy(update={"evaluation": None})
    with pytest.raises(SettingError, match=r"config/movies\.toml has no section \[evaluation\] with positive_from"):
        make_examples(silent, rows)


def test_fields_say_the_same_of_the_same_and_something_else_of_others(movies: Domain, rows: SourceRows) -> None:
    examples = make_examples(movies, rows)
    ids = [(one.user, one.item) for one in rows.interactions]
    for column, names in ((USER, [user for user, _ in ids]), (ITEM, [item for _, item in ids])):
        assert len(set(zip(names, examples.fields[:, column], strict=True))) == len(set(names))
        assert len(set(examples.fields[:, column])) == len(set(names))
    assert examples.fields.min() == 1
    spec = movies.source
    assert examples.fields.shape[1] == 2 + len(spec.users.attributes) + len(spec.items.attributes)


@pytest.mark.parametrize("at_once", [1, 7])
def test_every_test_lies_after_every_example_that_trained_or_validated(movies: Domain, at_once: int) -> None:
    examples = make_examples(movies, random_rows(2, 400, at_once))
    splits = make_splits(movies, examples)
    assert len(splits) == len(SPLITS)
    for split in splits:
        parts = [examples.times[part] for part in (split.train, split.validation, split.test)]
        assert parts[0][-1] < parts[1][0]
        assert parts[1][-1] < parts[2][0]
        assert (split.train.start or 0, split.train.stop) == (0, split.validation.start)
        assert split.validation.stop == split.test.start
    assert splits[-1].test.stop == len(examples)
    for one, following in pairwise(splits):
        assert one.test.stop == following.test.start
    for split, (begin, _) in zip(splits, SPLITS, strict=True):
        assert split.test.start == pytest.approx(begin * len(examples), abs=at_once)


def test_too_few_interactions_are_refused_with_the_part_that_lacks_them(movies: Domain, rows: SourceRows) -> None:
    few = replace(rows, interactions=rows.interactions[:3])
    with pytest.raises(InputError, match=r"domain movies: 3 interactions are too few .* the train part .* at 70%"):
        make_splits(movies, make_examples(movies, few))
    alike = [one if n < 380 else one._replace(value=1.0) for n, one in enumerate(rows.interactions)]
    make_splits(movies, make_examples(movies, replace(rows, interactions=alike)))
    alike = [one if n < 360 else one._replace(value=1.0) for n, one in enumerate(rows.interactions)]
    with pytest.raises(InputError, match=r"the test part of the split at 90% has no example, or .* one label alone"):
        make_splits(movies, make_examples(movies, replace(rows, interactions=alike)))
    at_once = [one._replace(time=START) for one in rows.interactions]
    with pytest.raises(InputError, match=r"the validation part of the split at 70%"):
        make_splits(movies, make_examples(movies, replace(rows, interactions=at_once)))


def test_what_training_did_not_know_shares_its_field_s_first_code() -> None:
    fields = np.array([[1, 2, 3], [2, 1, 3], [4, 3, 1], [3, 5, 2]])
    codes, items, count = known_codes(fields, fields[:2])
    assert codes.tolist() == [[2, 6, 8], [3, 5, 8], [1, 4, 7], [1, 4, 7]]
    assert items.tolist() == [4, 5, 6, 4, 4, 4]  # by the item's code in ``fields``
    assert count == 9
    assert codes.max() < count
