from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from dare_core.config.domains import Domain
from dare_core.evaluation.service import Entity, entities_in_service, microseconds, newest_seen, seen_from
from dare_core.evaluation.source import Interaction, SourceRows

from .conftest import ITEMS, START, hour, source_rows


def films(hours: Sequence[float], user: str = "u0") -> list[Interaction]:
    """A user's interactions, with a film of its own each; the value tells which one it was."""
    return [Interaction(hour(at), user, f"i{n}", float(n)) for n, at in enumerate(hours)]


def versions(domain: Domain, rows: SourceRows, since: datetime = START) -> list[Entity]:
    return [entity for entity in entities_in_service(domain, rows, since) if entity.kind == "user"]


def moments(domain: Domain, rows: SourceRows, since: datetime = START) -> list[float]:
    return [(one.data_as_of - START) / timedelta(hours=1) for one in versions(domain, rows, since)]


def with_row(rows: SourceRows, table: str, name: str, **changed: Any) -> SourceRows:
    of_table = getattr(rows, table)
    return replace(rows, **{table: {**of_table, name: {**of_table[name], **changed}}})


def many(domain: Domain, first: int | None, again: int | None) -> Domain:
    assert domain.evaluation is not None
    numbers = {"first_events": first, "min_new_events": again}
    return domain.model_copy(update={"evaluation": domain.evaluation.model_copy(update=numbers)})


def test_a_user_is_written_about_after_the_first_events_and_again_after_so_many_more(soon: Domain) -> None:
    rows = source_rows(films(range(1, 31)), items=30)
    assert moments(soon, rows) == [5, 15, 25]
    assert moments(many(soon, 3, 4), rows) == [3, 7, 11, 15, 19, 23, 27]


def test_what_the_evaluation_does_not_say_is_as_in_service(soon: Domain) -> None:
    rows = source_rows(films(range(1, 31)), items=30)
    knowledge = soon.knowledge.model_copy(update={"max_history": 7, "min_new_events": 9})
    assert moments(many(soon, None, None).model_copy(update={"knowledge": knowledge}), rows) == [7, 16, 25]


def test_of_what_was_known_before_the_service_began_only_the_newest_counts(soon: Domain) -> None:
    rows = source_rows(films(range(1, 31)), items=30)
    assert moments(soon, rows, since=hour(12)) == [12, 22]
    assert moments(soon, rows, since=hour(12.5)) == [12, 22]
    assert moments(soon, rows, since=hour(3)) == [5, 15, 25]  # too few were known then


def test_what_shares_a_moment_is_known_together(soon: Domain) -> None:
    rows = source_rows(films([1, 2, 3, 4, 5, 5, 5, 8, 9]))
    [version] = versions(soon, rows)
    assert version.data_as_of == hour(5)
    assert [entry["value"] for entry in version.attributes["history"]] == [3, 4, 5, 6]


def test_a_version_that_no_interaction_would_see_is_not_written(soon: Domain) -> None:
    assert moments(soon, source_rows(films([1, 2, 3, 4, 5]))) == []
    assert moments(soon, source_rows(films([1, 2, 3, 4, 5, 5]))) == []
    assert moments(soon, source_rows(films([1, 2, 3, 4, 5, 6]))) == [5]
    rows = source_rows(films(range(1, 10)))
    assert moments(soon, with_row(rows, "users", "u0", updated_at=hour(8))) == [8]
    assert moments(soon, with_row(rows, "users", "u0", updated_at=hour(9))) == []


def test_a_history_shows_the_newest_the_oldest_of_them_first(soon: Domain) -> None:
    for version in versions(soon, source_rows(films(range(1, 20)))):
        newest = round((version.data_as_of - START) / timedelta(hours=1)) - 1
        shown = version.attributes["history"]
        assert [entry["value"] for entry in shown] == [newest - 3, newest - 2, newest - 1, newest]
        assert shown[-1]["title"] == f"Film {newest}"


def test_a_history_does_not_show_an_item_whose_row_came_later_or_that_has_no_title(soon: Domain) -> None:
    rows = source_rows(films(range(1, 8)))
    rows = with_row(rows, "items", "i4", updated_at=hour(5.5))
    rows = with_row(rows, "items", "i3", updated_at=None)
    rows = with_row(rows, "items", "i2", title=" ")
    [version] = versions(soon, rows)
    assert version.data_as_of == hour(5)
    assert [entry["value"] for entry in version.attributes["history"]] == [0, 1]


def test_a_text_is_dated_by_the_user_s_row_where_that_is_newer_and_the_newest_of_a_moment_wins(soon: Domain) -> None:
    rows = with_row(source_rows(films(range(1, 31)), items=30), "users", "u0", updated_at=hour(20))
    assert moments(soon, rows) == [20, 25]
    assert [entry["value"] for entry in versions(soon, rows)[0].attributes["history"]] == [11, 12, 13, 14]


def test_who_has_no_row_or_no_moment_is_not_written_about(soon: Domain) -> None:
    rows = source_rows([*films(range(1, 8)), *films(range(1, 8), "stranger"), *films(range(1, 8), "u1")])
    rows = with_row(rows, "users", "u1", updated_at=None)
    rows = with_row(rows, "items", "i0", updated_at=None)
    rows = with_row(rows, "items", "i1", title=None)
    assert {one.entity_id for one in versions(soon, rows)} == {"u0"}
    items = [one.entity_id for one in entities_in_service(soon, rows, START) if one.kind == "item"]
    assert items == sorted(f"i{n}" for n in range(2, ITEMS))


def test_entities_are_items_and_then_users_each_by_id_and_moment(soon: Domain, rows: SourceRows) -> None:
    found = entities_in_service(soon, rows, START)
    assert [one.kind for one in found] == ["item"] * ITEMS + ["user"] * (len(found) - ITEMS)
    for kind in ("item", "user"):
        order = [(one.entity_id, one.data_as_of) for one in found if one.kind == kind]
        assert order == sorted(set(order))


def test_groups_are_named_by_who_was_there_when_the_service_began(soon: Domain) -> None:
    rows = source_rows(films(range(1, 8)), items=60)
    assert soon.grouping.items.min_count == 20
    rows = replace(
        rows, items={name: {**row, "release_year": 1990 + int(name[1:]) // 20} for name, row in rows.items.items()}
    )
    late = replace(rows, items={**rows.items, "i59": {**rows.items["i59"], "updated_at": hour(50)}})

    def groups(of: SourceRows) -> set[str]:
        return {one.group for one in entities_in_service(soon, of, hour(5)) if one.kind == "item"}

    assert groups(rows) == {"1990", "1991", "1992"}
    assert groups(late) == {"1990", "1991", "rest"}


def entity(name: str, moment: datetime) -> Entity:
    return Entity("user", name, "g", {}, moment)


def test_a_text_is_seen_after_the_newest_event_that_its_prompt_shows_and_nightly_from_the_next_midnight_on() -> None:
    entities = [entity("a", hour(5)), entity("b", hour(24)), entity("c", hour(23.99))]
    berlin = timezone(timedelta(hours=2))
    entities.append(entity("d", datetime(2020, 1, 2, 1, 30, tzinfo=berlin)))  # half past eleven in UTC, a day before
    times = microseconds([one.data_as_of for one in entities])
    assert (seen_from(entities, nightly=False) == times + 1).all()
    midnights = microseconds([hour(24), hour(48), hour(24), hour(24)])
    assert (seen_from(entities, nightly=True) == midnights).all()


def test_times_of_any_zone_are_counted_in_utc() -> None:
    west = datetime(1969, 12, 31, 19, 0, 0, 7, tzinfo=timezone(-timedelta(hours=5)))
    assert microseconds([west, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)]).tolist() == [7, 1_000_000]


@pytest.mark.parametrize("nightly", [False, True])
def test_the_newest_text_that_was_there_is_seen(nightly: bool) -> None:
    random = np.random.default_rng(3)
    entities = sorted(
        (entity(f"u{random.integers(4)}", hour(int(random.integers(200)))) for _ in range(40)),
        key=lambda one: (one.entity_id, one.data_as_of),
    )
    seen = seen_from(entities, nightly)
    ids = [f"u{n}" for n in random.integers(6, size=300)]  # of two there is no text
    times = microseconds([hour(int(n)) for n in random.integers(240, size=300)])
    found = newest_seen(entities, seen, ids, times)
    for name, time, place in zip(ids, times, found, strict=True):
        there = [n for n, one in enumerate(entities, 1) if one.entity_id == name and seen[n - 1] <= time]
        assert place == (there[-1] if there else 0)
    assert (found > 0).any()
    assert (found == 0).any()
