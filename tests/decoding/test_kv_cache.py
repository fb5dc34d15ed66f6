import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dare_core.decoding.kv_cache import CacheShape, KVCache

SHAPE = CacheShape(layers=2, kv_heads=2, head_dim=4)
CAPACITY = 24


def value_of(token: int, position: int, layer: int) -> float:
    """A key or value that tells which token was written where."""
    return 1000.0 * layer + 10.0 * token + position / 100


class CacheMachine(RuleBasedStateMachine):
    """Sequences are admitted, write drafts, keep some of them and leave, in any order."""

    @initialize(slots=st.integers(1, 4))
    def start(self, slots: int) -> None:
        self.cache = KVCache(SHAPE, slots, CAPACITY, torch.float32, torch.device("cpu"))
        self.texts: dict[int, list[int]] = {}

    def write(self, slot: int, tokens: list[int], positions: list[int], places: list[int]) -> None:
        where = torch.tensor(places, dtype=torch.int64) + slot * CAPACITY
        for layer in range(SHAPE.layers):
            rows = torch.tensor([value_of(t, p, layer) for t, p in zip(tokens, positions, strict=True)])
            keys = rows[None, :, None].expand(SHAPE.kv_heads, -1, SHAPE.head_dim)
            self.cache.write(layer, where, keys, -keys)

    @precondition(lambda self: self.cache.free_slots)
    @rule(prompt=st.lists(st.integers(0, 2), min_size=1, max_size=6))
    def admit(self, prompt: list[int]) -> None:
        slot = self.cache.admit(np.array(prompt, np.int32))
        assert slot not in self.texts
        begin = int(self.cache.lengths[slot])
        assert begin < len(prompt)
        unread = prompt[begin:]
        self.write(slot, unread, list(range(begin, len(prompt))), list(range(begin, len(prompt))))
        self.cache.lengths[slot] = len(prompt)
        self.texts[slot] = list(prompt)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def draft_and_keep(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.texts)))
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
        self.cache.lengths[slot] += len(kept)
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
            for layer in range(SHAPE.layers):
                keys, values = self.cache.read(layer, slice(slot, slot + 1), len(text))
                expected = torch.tensor([value_of(t, p, layer) for p, t in enumerate(text)])
                assert torch.equal(keys[0, 0, :, 0], expected)
                assert torch.equal(values[0, -1, :, -1], -expected)

    @invariant()
    def no_place_is_lost(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.free_slots + len(self.texts) == len(self.cache.lengths)


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCache = CacheMachine.TestCase
