"""The likes before an interaction, against a reference that looks at all interactions for each."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dare_core.features.likes import newest_likes


def _reference(
    users: NDArray[np.int64], times: NDArray[np.int64], liked: NDArray[np.bool_], most: int
) -> list[list[int]]:
    found = []
    for user, time in zip(users, times, strict=True):
        before = np.flatnonzero(liked & (users == user) & (times < time))
        newest = sorted(before, key=lambda place: (times[place], place), reverse=True)[:most]
        found.append([*map(int, newest), *[-1] * (most - len(newest))])
    return found


@pytest.mark.parametrize("moments", [3, 40, 10_000])
@pytest.mark.parametrize("most", [1, 4, 50])
def test_the_newest_likes_are_what_a_look_at_all_interactions_finds(moments: int, most: int) -> None:
    random = np.random.default_rng(moments + most)
    users = random.choice([-7, 0, 3, 10**15], 300)
    times = random.integers(moments, size=300) * 10**12 - 10**14
    liked = random.random(300) < 0.6
    assert newest_likes(users, times, liked, most).tolist() == _reference(users, times, liked, most)


def test_a_like_is_not_before_itself_nor_before_another_of_its_moment() -> None:
    users, times = np.zeros(3, np.int64), np.array([5, 5, 6])
    assert newest_likes(users, times, np.ones(3, bool), 2).tolist() == [[-1, -1], [-1, -1], [1, 0]]


def test_where_nothing_is_liked_or_nothing_happened_there_are_no_likes() -> None:
    nothing = np.zeros(0, np.int64)
    assert newest_likes(nothing, nothing, nothing.astype(bool), 3).shape == (0, 3)
    assert newest_likes(np.zeros(2, np.int64), np.arange(2), np.zeros(2, bool), 3).tolist() == [[-1] * 3] * 2
