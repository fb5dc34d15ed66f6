import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dare_core.decoding import kv_cache
from dare_core.decoding.kv_cache import CacheShape, KVCache

SHAPE = CacheShape(layers=2, kv_heads=2, head_dim=4)
CAPACITY = 24


def value_of(token: int, position: int, layer: int) -> float:
    """A key or value that tells which token was written where."""
    return 1000.0 * layer + 10.0 * token + position / 100


@pytest.fixture(autouse=True)
def short_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two tokens."""
    monkeypatch.setattr(kv_cache, "_SHORTEST", 2)


class CacheMachine(RuleBasedStateMachine):
    """Sequences are admitted, read their prompts, write drafts, keep some of them and leave, in any order."""

    @initialize(slots=st.integers(1, 4), prefixes=st.integers(0, 2))
    def start(self, slots: int, prefixes: int) -> None:
        self.cache = KVCache(SHAPE, slots, CAPACITY, torch.float32, torch.device("cpu"), prefixes)
        self.texts: dict[int, list[int]] = {}

    def place(self, slot: int, position: int) -> int:
        holder = self.cache.prefixes[slot] if position < self.cache.shared[slot] else slot
        return int(holder) * CAPACITY + position

    def write(self, slot: int, tokens: list[int], positions: list[int], places: list[int]) -> None:
        where = torch.tensor([self.place(slot, place) for place in places], dtype=torch.int64)
        for layer in range(SHAPE.layers):
            rows = torch.tensor([value_of(t, p, layer) for t, p in zip(tokens, positions, strict=True)])
            keys = rows[None, :, None].expand(SHAPE.kv_heads, -1, SHAPE.head_dim)
            self.cache.write(layer, where, keys, -keys)

    def written(self, slot: int) -> bool:
        return int(self.cache.lengths[slot]) == len(self.texts[slot])

    @precondition(lambda self: self.cache.free_slots)
    @rule(prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=4))
    def admit(self, prompts: list[list[int]]) -> None:
        prompt, *others = (np.array(prompt, np.int32) for prompt in prompts)
        free = self.cache.free_slots
        slot = self.cache.admit(prompt, others)
        if slot is None:  # somebody reads what it begins with
            assert self.cache.free_slots == free
            assert any(not self.written(other) for other in self.texts)
            return
        assert slot not in self.texts
        assert self.cache.lengths[slot] < len(prompt)
        self.texts[slot] = prompt.tolist()

    @precondition(lambda self: any(not self.written(slot) for slot in self.texts))
    @rule(data=st.data())
    def read_on(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(slot for slot in self.texts if not self.written(slot))))
        begin, text = int(self.cache.lengths[slot]), self.texts[slot]
        end = data.draw(st.integers(begin + 1, len(text)))
        self.write(slot, text[begin:end], list(range(begin, end)), list(range(begin, end)))
        self.cache.commit(slot, end)

    @precondition(lambda self: any(self.written(slot) for slot in self.texts))
    @rule(data=st.data())
    def draft_and_keep(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(slot for slot in self.texts if self.written(slot))))
        text = self.texts[slot]
        room = CAPACITY - len(text)
        n = data.draw(st.integers(0, min(5, room)))
        tokens = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
        kept = sorted(data.draw(st.sets(st.integers(0, n - 1)))) if n else []
        # The kept nodes are a path: the i-th of them lies i positions behind the text.
        depth = {node: i for i, node in enumerate(kept)}
        positions = [len(text) + depth.get(node, 0) for node in range(n)]
        self.write(slot, tokens, positions, [len(text) + node for node in range(n)])
        base = slot * CAPACITY + len(text)
        moves = [(base + node, base + i) for i, node in enumerate(kept) if node != i]
        self.cache.move(*(np.array(part, np.int64) for part in (zip(*moves, strict=True) if moves else ((), ()))))
        accepted = [tokens[node] for node in kept]
        self.cache.tokens[slot, len(text) : len(text) + len(kept)] = accepted
        self.cache.commit(slot, len(text) + len(kept))
        text += accepted

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), broken=st.booleans())
    def leave(self, data: st.DataObject, broken: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        if broken:
            self.cache.wipe(slot)
        self.cache.release(slot)
        del self.texts[slot]

    @invariant()
    def every_sequence_reads_its_own_text(self) -> None:
        for slot, text in getattr(self, "texts", {}).items():
            for position, token in enumerate(text[: int(self.cache.lengths[slot])]):
                holder, at = divmod(self.place(slot, position), CAPACITY)
                for layer in range(SHAPE.layers):
                    keys, values = self.cache.read(layer, slice(holder, holder + 1), at + 1)
                    expected = value_of(token, position, layer)
                    assert keys[0, 0, at, 0] == torch.tensor(expected)
                    assert values[0, -1, at, -1] == -torch.tensor(expected)

    @invariant()
    def no_place_is_lost(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.free_slots + len(self.texts) == len(self.cache.lengths)


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCache = CacheMachine.TestCase


def test_what_prompts_have_in_common_is_held_once() -> None:
    cache = KVCache(SHAPE, 4, CAPACITY, torch.float32, torch.device("cpu"), prefixes=1)
    prompts = [np.array([1, 2, 3, 4, 5, tail], np.int32) for tail in range(4)]
    first = cache.admit(prompts[0], prompts[1:])
    assert first is not None
    assert (cache.shared[first], cache.lengths[first]) == (5, 0)
    assert cache.admit(prompts[1], prompts[2:]) is None  # until the first has read it
    cache.commit(first, 6)
    slots = [first, *(cache.admit(prompt) for prompt in prompts[1:])]
    assert cache.shared[slots].tolist() == [5, 5, 5, 5]
    assert set(cache.prefixes[slots].tolist()) == {4}
    assert cache.lengths[slots].tolist() == [6, 5, 5, 5]


def test_a_prefix_whose_reader_fails_is_read_again_by_another() -> None:
    cache = KVCache(SHAPE, 2, CAPACITY, torch.float32, torch.device("cpu"), prefixes=1)
    prompts = [np.array([1, 2, 3, tail], np.int32) for tail in range(3)]
    first = cache.admit(prompts[0], prompts[1:])
    assert first is not None
    cache.wipe(first)
    cache.release(first)
    second = cache.admit(prompts[1], prompts[2:])
    assert second is not None
    assert (cache.shared[second], cache.lengths[second]) == (3, 0)
