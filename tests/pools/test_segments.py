from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dare_core.errors import PoolError
from dare_core.pools.eviction import BYTES_PER_TOKEN, Limits, choose
from dare_core.pools.segments import Segment, entity_hash, tier

VOCABULARY = 100
ROW = st.tuples(st.lists(st.integers(0, 4), max_size=12), st.sampled_from(["", "a", "b"]), st.integers(0, 3))
Row = tuple[list[int], str, int]


def table(rows: list[Row]) -> pa.Table:
    return pa.table(
        {
            "token_ids": pa.array([tokens for tokens, _, _ in rows], pa.list_(pa.int32())),
            "entity_id": pa.array([entity or None for _, entity, _ in rows], pa.string()),
            "available_at": pa.array(
                [datetime(2026, 1, 1 + day, 12, tzinfo=UTC) for _, _, day in rows], pa.timestamp("us", "UTC")
            ),
        }
    )


def built(rows: list[Row]) -> Segment:
    return Segment.build(table(rows), VOCABULARY)


def texts_of(segment: Segment) -> list[list[int]]:
    ends = np.cumsum(segment.rows["length"] + 1)
    return [part[1:].tolist() for part in np.split(segment.index.tokens, ends[:-1])] if len(ends) else []


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(ROW, max_size=12), data=st.data())
def test_a_segment_is_the_same_bytes_whatever_the_order_of_its_texts(rows: list[Row], data: st.DataObject) -> None:
    assert built(rows).to_bytes() == built(data.draw(st.permutations(rows))).to_bytes()


@settings(deadline=None, max_examples=300)
@given(parts=st.lists(st.lists(ROW, max_size=6), max_size=4))
def test_merging_segments_gives_the_bytes_of_building_from_all_texts(parts: list[list[Row]]) -> None:
    merged = Segment.merge([built(part) for part in parts])
    assert merged.to_bytes() == built([row for part in parts for row in part]).to_bytes()


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(ROW, max_size=10), gone=st.sampled_from(["a", "b"]))
def test_leaving_texts_out_gives_the_bytes_of_never_having_had_them(rows: list[Row], gone: str) -> None:
    segment = built(rows)
    kept = segment.without(np.array([entity_hash(gone)], np.uint64))
    others = [row for row in rows if row[1] != gone]
    assert Segment.merge([segment], [kept]).to_bytes() == built(others).to_bytes()


def test_texts_twice_of_one_entity_count_once_and_texts_of_nobody_as_often_as_they_are_there() -> None:
    segment = built(
        [([1, 2], "a", 0), ([1, 2], "a", 2), ([1, 2], "b", 0), ([1, 2], "", 0), ([1, 2], "", 0), ([], "a", 0)]
    )
    assert texts_of(segment) == [[1, 2]] * 4
    assert (segment.texts, segment.tokens) == (4, 8)


def test_a_file_holds_no_ids_and_comes_back_as_it_was() -> None:
    segment = built([([1, 2, 3], "user-4711", 1), ([4], "", 0)])
    data = segment.to_bytes()
    assert b"4711" not in data
    read = Segment.of_bytes(data, "file")
    assert read.rows.tolist() == segment.rows.tolist()
    for mine, theirs in zip(read.index, segment.index, strict=True):
        assert np.array_equal(mine, theirs)
    assert not read.index.tokens.flags.writeable


def test_a_file_cut_short_anywhere_is_found_out() -> None:
    data = built([([1, 2, 3], "", 0)]).to_bytes()
    for length in range(len(data)):
        with pytest.raises(PoolError, match="file is damaged"):
            Segment.of_bytes(data[:length], "file")


def test_a_header_with_any_byte_changed_is_found_out() -> None:
    data = built([([1, 2, 3], "", 0)]).to_bytes()
    for at in range(64):
        with pytest.raises(PoolError, match=r"damaged|newer than"):
            Segment.of_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :], "file")


@pytest.mark.parametrize("bad", [[1, VOCABULARY], [-1]])
def test_token_ids_out_of_range_are_refused(bad: list[int]) -> None:
    with pytest.raises(PoolError, match=rf"token_ids holds {bad[-1]}, which is outside the tokenizer's 0\.\.99"):
        built([(bad, "", 0)])


def test_token_ids_wider_than_the_files_are_refused_not_cut() -> None:
    wide = pa.table({"token_ids": pa.array([[1 << 32]], pa.list_(pa.int64()))})
    with pytest.raises(PoolError, match="4294967296"):
        Segment.build(wide, VOCABULARY)


def test_more_tokens_than_positions_can_count_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dare_core.pools.segments._MOST_TOKENS", 10)
    half, other = built([([1, 2, 3, 4], "a", 0)]), built([([2, 3, 4, 1], "b", 0)])
    assert Segment.merge([half, other]).texts == 2
    with pytest.raises(PoolError, match=r"15 positions .* holds 10"):
        Segment.merge([half, other, built([([3, 3, 3, 3], "c", 0)])])
    with pytest.raises(PoolError, match="12 positions"):
        built([([1] * 11, "a", 0)])


def test_a_hundred_nights_leave_few_segments_and_take_each_text_through_few_merges() -> None:
    sizes, moved, most = [1000], 0, 0
    for _ in range(100):
        sizes.append(10)
        begin = tier(sizes, 9)
        if begin < len(sizes) - 1:
            moved += sum(sizes[begin:])
            sizes = [*sizes[:begin], sum(sizes[begin:])]
        most = max(most, len(sizes))
    assert sum(sizes) == 2000
    assert most <= 9
    assert moved <= 10 * 1000


@pytest.mark.parametrize(
    ("sizes", "begin"), [([5], 0), ([100, 10, 1], 2), ([100, 1, 1], 1), ([3, 2, 1], 2), ([3, 1, 1, 1], 0)]
)
def test_a_merge_takes_in_what_is_no_larger(sizes: list[int], begin: int) -> None:
    assert tier(sizes, 9) == begin


def test_more_segments_than_there_may_be_are_merged_whatever_their_sizes() -> None:
    sizes = [4**n for n in range(12, 0, -1)]
    assert tier(sizes, 9) == 8


def test_old_texts_go_and_texts_of_an_unknown_day_stay() -> None:
    segment = Segment.build(table([([1], "a", 0), ([2], "b", 3)]), VOCABULARY)
    undated = Segment.build(pa.table({"token_ids": [[3]]}), VOCABULARY)
    today = int(segment.rows["day"].max())
    keep = choose([segment, undated], Limits(max_age_days=2), today)
    assert [segment.rows["day"][keep[0]].tolist(), keep[1].tolist()] == [[today], [True]]


def test_where_room_is_short_the_texts_stay_that_the_newest_ones_repeat() -> None:
    used, idle = list(range(10, 30)), list(range(40, 60))
    old = built([(used, "a", 0), (idle, "b", 3)])
    new = built([([1, *used], "c", 3)])
    limits = Limits(group_bytes=BYTES_PER_TOKEN * 50)
    keep = choose([old, new], limits, today=20_000)
    kept = [text for text, stays in zip(texts_of(old), keep[0], strict=True) if stays]
    assert kept == [used]
    assert keep[1].all()


def test_a_bound_below_one_branch_is_refused() -> None:
    with pytest.raises(PoolError, match="cannot hold one context of 16 tokens and one branch of 16"):
        Limits(group_bytes=100)
