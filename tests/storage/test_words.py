"""Many byte strings in one pass: what is found equals what comparing each of them at each place finds."""

import random

import pytest

from dare_core.storage.words import Words


@pytest.mark.parametrize("longest", [3, 12, 200])
def test_every_occurrence_of_every_word_is_found(longest: int) -> None:
    chance = random.Random(longest)
    for _ in range(30):
        data = bytes(chance.choices(b"abc", k=chance.randrange(300)))
        words = {bytes(chance.choices(b"abc", k=chance.randint(1, longest))) for _ in range(20)}
        words |= {data[at : at + chance.randint(1, longest)] for at in range(0, len(data), 9)}
        sought = Words(words)
        found = sorted((int(at), sought.words[which]) for at, which in zip(*sought.find(data), strict=True))
        assert found == sorted((at, word) for word in words for at in range(len(data)) if data.startswith(word, at))


def test_more_places_than_there_is_room_for_at_first() -> None:
    at, which = Words([b"aa", b"\xff\0"]).find(b"a" * 5000)
    assert (len(at), set(which.tolist())) == (4999, {0})


def test_no_words_or_no_bytes_are_nothing_found() -> None:
    assert [len(part) for part in Words([b""]).find(b"abc")] == [0, 0]
    assert [len(part) for part in Words([b"a"]).find(b"")] == [0, 0]
