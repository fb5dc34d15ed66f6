"""What the model says of a text does not depend on what stands beside it in a step, to the last bit."""

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dare_core.decoding import Engine, EngineConfig, Request, Rule, attention, kernels
from dare_core.decoding.batch import PackedBatch
from dare_core.decoding.kv_cache import CacheShape, KVCache
from dare_core.decoding.weights import Storage
from dare_core.drafts import Forest
from tests.decoding.conftest import VOCABULARY
from tests.decoding.scripted import Scripted, noisy

pytestmark = pytest.mark.skipif(kernels.load() is None, reason="no C++ compiler")

STORAGES: tuple[Storage, ...] = ("model", "bfloat16", "int8")
#: The path 0, 2, 5, 6 goes through a tree whose other nodes stand between; at depth 13 a window of 12 is behind it.
PARENTS = [-1, -1, 0, 1, 0, 2, 5, *range(6, 16)]
PATH = [0, 2, 5, 6, *range(7, 17)]


def taken_over(model: PreTrainedModel, storage: Storage) -> PreTrainedModel:
    model = copy.deepcopy(model)
    Engine(model, None, EngineConfig(2, 64, Rule(), frozenset({1}), weights=storage))
    return model


def tree(tokens: NDArray[np.int32]) -> Forest:
    depths = np.zeros(len(PARENTS), np.int32)
    for node, parent in enumerate(PARENTS):
        depths[node] = 1 if parent < 0 else depths[parent] + 1
    n = len(PARENTS)
    offsets = np.array([0, 0, n, n], np.int32)
    return Forest(offsets, tokens, np.array(PARENTS, np.int32), depths, np.ones(n, np.float32), np.zeros(n, np.int16))


@torch.inference_mode()
@pytest.mark.parametrize("storage", STORAGES)
def test_a_row_of_a_tree_equals_the_same_text_fed_token_by_token(tiny_model: PreTrainedModel, storage: Storage) -> None:
    model = taken_over(tiny_model, storage)
    shape, device = CacheShape.of(model), torch.device("cpu")
    random = np.random.default_rng(3)
    text = random.integers(3, VOCABULARY, 11).astype(np.int32)
    nodes = random.integers(3, VOCABULARY, len(PARENTS)).astype(np.int32)
    everything = np.concatenate([text, nodes[PATH]])
    empty = Forest.empty(1)
    zero, one, last = np.zeros(1, np.int64), np.ones(1, np.int64), np.ones(1, np.bool_)

    alone = KVCache(shape, 1, 64, torch.float32, device)
    alone.tokens[0, : len(everything)] = everything
    expected = []
    for _ in everything:
        expected.append(attention.forward(model, PackedBatch(alone, zero, one, last, empty, device))[0].clone())
        alone.lengths[0] += 1

    # Three sequences; the second reads its last four tokens, and drafts. The third shares a prefix with it.
    beside = KVCache(shape, 3, 64, torch.float32, device, prefixes=1)
    beside.tokens[0] = random.integers(3, VOCABULARY, 64)
    beside.tokens[1, : len(text)] = beside.tokens[2, : len(text)] = text
    beside.prefixes[1:], beside.shared[1:] = 3, 5
    slots, ready = np.arange(3), np.ones(3, np.bool_)
    nothing = Forest.empty(3)
    attention.forward(model, PackedBatch(beside, slots, np.array([20, 7, 5]), ready, nothing, device))
    beside.lengths[:] = 20, 7, 5
    logits = attention.forward(model, PackedBatch(beside, slots, np.array([1, 4, 6]), ready, tree(nodes), device))
    path = [1, *(2 + node for node in PATH)]
    for row, of_text in zip(path, expected[len(text) - 1 :], strict=True):
        assert torch.equal(logits[row], of_text)
    assert torch.equal(logits[-1], expected[len(text) - 1])


@pytest.mark.parametrize("storage", STORAGES)
def test_drafted_texts_equal_undrafted_ones_at_any_precision(tiny_llama: PreTrainedModel, storage: Storage) -> None:
    random = np.random.default_rng(5)
    beginning = random.integers(3, VOCABULARY, 20).tolist()
    requests = [
        Request(str(i), str(i), [*beginning[: 20 - i % 3], *random.integers(3, VOCABULARY, 1 + i)], 40)
        for i in range(9)
    ]

    def texts(size: int, drafter: Scripted | None) -> dict[str, list[int]]:
        config = EngineConfig(size, 96, Rule(), frozenset({1}), draft_nodes=12, budget="fixed", weights=storage)
        engine = Engine(copy.deepcopy(tiny_llama), drafter, config)
        return {result.id: result.token_ids for result in engine.generate(requests)}

    undrafted = texts(1, None)
    for size in (1, 4, 9):
        assert texts(size, noisy(undrafted, VOCABULARY)) == undrafted
