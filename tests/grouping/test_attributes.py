"""Groups by attribute: how they are named, and which values have one."""

from typing import Any

import pytest

from dare_core.config.domains import AttributeGrouping
from dare_core.grouping import AttributeGroups, group_name, route


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (["Drama", "Comedy"], "Drama"),
        ([], "unknown"),
        (None, "unknown"),
        ("  sci-fi \n\t film\x07\u202e ", "sci-fi film"),
        (" ", "unknown"),
        ("*", "unknown"),
        ("x" * 100, "x" * 64),
        (1995, "1995"),
        (True, "true"),
        ("日本の映画", "日本の映画"),
    ],
)
def test_a_group_is_named_by_one_printable_line(value: Any, name: str) -> None:
    assert group_name(value) == name


def test_all_values_of_a_list_make_one_name_whatever_their_order() -> None:
    assert group_name(["War", "Drama", "War", " "], "all") == group_name(["Drama", "War"], "all") == "Drama + War"
    assert group_name([], "all") == "unknown"


def test_rare_values_share_the_rest_group_and_missing_ones_the_unknown() -> None:
    scheme = AttributeGrouping(min_count=10, rest="others")
    groups = AttributeGroups.fit("genre", scheme, {"Drama": 10, "War": 9, "unknown": 50})
    assert groups.names == ("Drama",)
    assert route(groups, {"genre": ["Drama", "War"]}) == ("Drama", "attribute")
    assert route(groups, {"genre": ["War"]}) == ("others", "rest")
    assert route(groups, {"genre": "never seen"}) == ("others", "rest")
    assert route(groups, {}) == ("unknown", "unknown")


def test_a_value_near_the_bound_keeps_the_group_that_it_had() -> None:
    scheme = AttributeGrouping(min_count=10)
    before = AttributeGroups.fit("genre", scheme, {"Drama": 10, "War": 9})
    assert AttributeGroups.fit("genre", scheme, {"Drama": 5, "War": 9}, before).names == ("Drama",)
    assert AttributeGroups.fit("genre", scheme, {"Drama": 4, "War": 10}, before).names == ("War",)
    assert AttributeGroups.fit("mood", scheme, {"Drama": 5}, before).names == ()  # another attribute's groups


def test_a_cluster_outranks_the_attribute() -> None:
    groups = AttributeGroups.fit("occupation", AttributeGrouping(), {"writer": 1})
    assert route(groups, {"occupation": "writer"}, "cluster 3") == ("cluster 3", "cluster")
    assert route(groups, {"occupation": "writer"}) == ("writer", "attribute")
