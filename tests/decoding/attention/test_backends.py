"""Every backend attends to what a row sees, and to nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dare_core.decoding import kernels
from dare_core.decoding.attention import cpu_kernels, torch_kernels
from dare_core.decoding.attention.backends import Backend, choose
from dare_core.decoding.batch import PackedBatch
from dare_core.decoding.kv_cache import CacheShape, KVCache
from dare_core.drafts import Forest

LAYER, HEADS, SHAPE = 1, 4, CacheShape(layers=2, kv_heads=2, head_dim=32)
CPU = torch.device("cpu")
#: Per sequence: slot, committed positions, chain, and its tree's nodes by their parents.
SEQUENCES = {
    "neighbours with trees of two sizes": [(0, 9, 1, [-1, 0, 0]), (1, 4, 1, [-1, -1, 0, 2, 2])],
    "trees of one size": [(1, 6, 1, [-1, 0]), (2, 3, 1, [-1, -1])],
    "slots far apart": [(0, 5, 1, [-1]), (5, 2, 1, []), (7, 11, 1, [-1, 0, 1])],
    "a prompt and a text beside it": [(2, 0, 13, [-1, 0]), (3, 8, 1, [-1, 0, -1]), (6, 3, 10, [])],
}


def backends() -> list[object]:
    missing = pytest.mark.skipif(kernels.load() is None, reason="no C++ compiler")
    return [
        pytest.param(cpu_kernels.attend, id="cpu kernels", marks=missing),
        pytest.param(torch_kernels.attend, id="torch's"),
    ]


def expected(
    cache: KVCache, rows: list[tuple[int, int, list[int]]], query: Tensor, window: int, scale: float, softcap: float
) -> Tensor:
    """Row by row: ``rows`` says its slot, its position, and the places of its slot's cache that it may see."""
    out = torch.empty(len(rows), HEADS, SHAPE.head_dim)
    for row, (slot, position, seen) in enumerate(rows):
        keys, values = cache.read(LAYER, slice(slot, slot + 1), max(place for place, _ in seen) + 1)
        places = [place for place, at in seen if at > position - window]
        for head in range(HEADS):
            kv_head = head // (HEADS // SHAPE.kv_heads)
            scores = keys[0, kv_head, places] @ query[head, row] * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            out[row, head] = scores.softmax(0) @ values[0, kv_head, places]
    return out


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("case", SEQUENCES)
@pytest.mark.parametrize(("window", "softcap"), [(1 << 62, 0.0), (4, 0.0), (1 << 62, 2.0), (4, 2.0)])
def test_a_row_attends_to_its_text_and_its_ancestors(backend: Backend, case: str, window: int, softcap: float) -> None:
    torch.manual_seed(3)
    sequences = SEQUENCES[case]
    cache = KVCache(SHAPE, 8, 32, torch.float32, CPU)
    cache.write(LAYER, torch.arange(8 * 32), *torch.randn(2, SHAPE.kv_heads, 8 * 32, SHAPE.head_dim))
    parents, depths, rows, offsets = [], [], [], [0]
    for slot, cached, chain, tree in sequences:
        cache.lengths[slot] = cached
        before = [(place, place) for place in range(cached + chain)]
        rows += [(slot, cached + i, before[: cached + i + 1]) for i in range(chain)]
        paths: list[list[tuple[int, int]]] = []
        for node, parent in enumerate(tree):
            path = before if parent < 0 else paths[parent]
            paths.append([*path, (cached + chain + node, path[-1][1] + 1)])
            rows.append((slot, paths[-1][-1][1], paths[-1]))
            parents.append(parent if parent < 0 else parent + offsets[-1])
            depths.append(paths[-1][-1][1] - cached - chain + 1)
        offsets.append(len(parents))
    n = len(parents)
    forest = Forest(
        np.array(offsets, np.int32),
        np.zeros(n, np.int32),
        np.array(parents, np.int32),
        np.array(depths, np.int32),
        np.ones(n, np.float32),
        np.zeros(n, np.int16),
    )
    slots, _, chains, _ = zip(*sequences, strict=True)
    everyone = np.ones(len(slots), np.bool_)
    batch = PackedBatch(cache, np.array(slots), np.array(chains), everyone, forest, CPU)
    assert batch.positions.tolist() == [position for _, position, _ in rows]
    query = torch.randn(len(rows), HEADS, SHAPE.head_dim).transpose(0, 1)  # as a model has it: rows outside
    key, value = torch.randn(2, SHAPE.kv_heads, len(rows), SHAPE.head_dim)
    asked = kernels.Attention(LAYER, HEADS, SHAPE.kv_heads, SHAPE.head_dim, window, 0.25, softcap)
    got = backend(batch, asked, query, key, value)
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected(cache, rows, query, window, 0.25, softcap), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(kernels.load() is None, reason="no C++ compiler")
def test_our_kernels_are_chosen_for_what_they_are_made_for_and_torchs_for_all_else() -> None:
    assert choose(CPU, torch.float32, 64) is cpu_kernels.attend
    for device, dtype, head_dim in [
        ("cuda", torch.float32, 64),
        ("cpu", torch.bfloat16, 64),
        ("cpu", torch.float32, 6),
    ]:
        assert choose(torch.device(device), dtype, head_dim) is torch_kernels.attend


def test_without_our_kernels_torchs_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: None)
    assert choose(CPU, torch.float32, 64) is torch_kernels.attend
