"""What a user had done before an interaction, against a reference that looks at all interactions for each."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dare_core.features.newest import newest_before


def _reference(
    users: NDArray[np.int64], times: NDArray[np.int64], most: int, among: NDArray[np.bool_]
) -> list[list[int]]:
    found = []
    for user, time in zip(users, times, strict=True):
        before = np.flatnonzero(among & (users == user) & (times < time))
        newest = sorted(before, key=lambda place: (times[place], place), reverse=True)[:most]
        found.append([*map(int, newest), *[-1] * (most - len(newest))])
    return found


@pytest.mark.parametrize("moments", [3, 40, 10_000])
@pytest.mark.parametrize("most", [1, 4, 50])
def test_the_newest_are_what_a_look_at_all_interactions_finds(moments: int, most: int) -> None:
    random = np.random.default_rng(moments + most)
    users = random.choice([-7, 0, 3, 10**15], 300)
    times = random.integers(moments, size=300) * 10**12 - 10**14
    liked = random.random(300) < 0.6
    assert newest_before(users, times, most, liked).tolist() == _reference(users, times, most, liked)
    assert newest_before(users, times, most).tolist() == _reference(users, times, most, np.ones(300, bool))


def test_an_interaction_is_not_before_itself_nor_before_another_of_its_moment() -> None:
    users, times = np.zeros(3, np.int64), np.array([5, 5, 6])
    assert newest_before(users, times, 2).tolist() == [[-1, -1], [-1, -1], [1, 0]]


def test_where_nothing_happened_or_nothing_may_be_found_there_is_none() -> None:
    nothing = np.zeros(0, np.int64)
    assert newest_before(nothing, nothing, 3).shape == (0, 3)
    assert newest_before(np.zeros(2, np.int64), np.arange(2), 3, np.zeros(2, bool)).tolist() == [[-1] * 3] * 2
