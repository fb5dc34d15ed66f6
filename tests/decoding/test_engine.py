from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedModel

from dare_core.decoding import Engine, EngineConfig, Request, Rule
from dare_core.decoding.engine import is_looping
from dare_core.drafts import DraftTree
from dare_core.errors import ModelError
from dare_core.pools import Pool, PoolStore
from tests.decoding.reference import greedy, is_tie

NEW_TOKENS = 40


class NoisyDrafter:
    """Drafts trees that hold the right continuation among wrong branches, so that every kind of path is walked."""

    def __init__(self, continuations: dict[str, list[int]], vocabulary: int, seed: int = 3) -> None:
        self._continuations = continuations
        self._vocabulary = vocabulary
        self._random = np.random.default_rng(seed)

    def resolve(self, group: str) -> str | None:
        return group

    def draft(self, group: str, tokens: Sequence[int], max_nodes: int) -> DraftTree:
        right = self._continuations[group][len(tokens) :]
        nodes: list[int] = []
        parents: list[int] = []
        spine = -1
        for depth in range(self._random.integers(0, 6)):
            if depth >= len(right) or len(nodes) + 3 > max_nodes:
                break
            siblings = [int(token) for token in self._random.choice(self._vocabulary, 2, replace=False)]
            children = [token for token in siblings if token != right[depth]]
            children.insert(int(self._random.integers(0, len(children) + 1)), right[depth])
            first = len(nodes)
            nodes += children
            parents += [spine] * len(children)
            spine = first + children.index(right[depth])
            if self._random.random() < 0.2:  # a tree whose right branch breaks off
                nodes[spine] = (nodes[spine] + 1) % self._vocabulary
        return DraftTree(np.array(nodes, np.int32), np.array(parents, np.int32), np.ones(len(nodes), np.float32))


def prompts(model: PreTrainedModel, n: int, seed: int = 5) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, model.config.vocab_size, random.integers(1, 30)).tolist() for _ in range(n)]


def config(**changes: object) -> EngineConfig:
    values: dict[str, object] = {
        "max_sequences": 3,
        "max_length": 128,
        "draft_nodes": 16,
        "step_nodes": 48,
        "rule": Rule("strict"),
        "eos_token_ids": frozenset({1}),
    }
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


def requests(asked: list[list[int]], new_tokens: int = NEW_TOKENS) -> list[Request]:
    return [Request(str(i), str(i), prompt, new_tokens) for i, prompt in enumerate(asked)]


def test_strict_equals_greedy_generate_whatever_is_drafted(tiny_model: PreTrainedModel) -> None:
    asked = prompts(tiny_model, 8)
    expected = [greedy(tiny_model, prompt, NEW_TOKENS) for prompt in asked]
    drafter = NoisyDrafter({str(i): text for i, text in enumerate(expected)}, tiny_model.config.vocab_size)
    results = {r.id: r for r in Engine(tiny_model, drafter, config()).generate(requests(asked))}
    accepted = 0
    for i, (prompt, text) in enumerate(zip(asked, expected, strict=True)):
        result = results[str(i)]
        assert result.error is None
        assert result.token_ids == text or is_tie(tiny_model, prompt, text, result.token_ids)
        assert result.statistics.relaxed == 0
        accepted += result.statistics.accepted
    assert accepted > 50  # the drafts were really used


def test_without_a_drafter_every_step_emits_one_token_per_sequence(tiny_llama: PreTrainedModel) -> None:
    asked = prompts(tiny_llama, 5)
    expected = [greedy(tiny_llama, prompt, 10) for prompt in asked]
    for result in Engine(tiny_llama, None, config()).generate(requests(asked, 10)):
        assert result.token_ids == expected[int(result.id)]
        assert result.statistics.steps == result.statistics.new_tokens == len(result.token_ids)
        assert result.statistics.drafted == 0


def test_a_text_does_not_depend_on_batch_size_or_order(tiny_llama: PreTrainedModel) -> None:
    asked = requests(prompts(tiny_llama, 6), 20)
    one = {r.id: r.token_ids for r in Engine(tiny_llama, None, config(max_sequences=1)).generate(asked)}
    many = {r.id: r.token_ids for r in Engine(tiny_llama, None, config(max_sequences=6)).generate(asked[::-1])}
    assert one == many


def test_statistics_add_up(tiny_llama: PreTrainedModel) -> None:
    asked = prompts(tiny_llama, 4)
    texts = {str(i): greedy(tiny_llama, prompt, NEW_TOKENS) for i, prompt in enumerate(asked)}
    drafter = NoisyDrafter(texts, tiny_llama.config.vocab_size)
    for result in Engine(tiny_llama, drafter, config()).generate(requests(asked)):
        figures = result.statistics
        assert figures.prompt_tokens == len(asked[int(result.id)])
        assert figures.new_tokens == len(result.token_ids)
        # every step emits its accepted nodes and one token of the target's own, but for a last one cut at the length
        assert figures.steps <= figures.new_tokens <= figures.accepted + figures.steps
        assert 0 <= figures.accepted <= figures.drafted


def test_nothing_is_drafted_beyond_a_texts_length(tiny_llama: PreTrainedModel) -> None:
    prompt = prompts(tiny_llama, 1)[0]
    text = greedy(tiny_llama, prompt, 6)

    class Chain:
        def resolve(self, group: str) -> str | None:
            return group

        def draft(self, group: str, tokens: Sequence[int], max_nodes: int) -> DraftTree:
            right = [*text[len(tokens) :], 5, 5, 5]
            return DraftTree(
                np.array(right, np.int32),
                np.arange(-1, len(right) - 1, dtype=np.int32),
                np.ones(len(right), np.float32),
            )

    [result] = Engine(tiny_llama, Chain(), config(max_length=len(prompt) + 6)).generate(requests([prompt], 6))
    assert result.token_ids == text
    assert (result.statistics.steps, result.statistics.drafted, result.statistics.accepted) == (1, 5, 5)


def test_the_text_stops_at_the_end_of_sequence_even_inside_a_draft(tiny_llama: PreTrainedModel) -> None:
    prompt = prompts(tiny_llama, 1)[0]
    text = greedy(tiny_llama, prompt, 30)
    end = text[7]
    first = text.index(end)
    drafter = NoisyDrafter({"0": text}, tiny_llama.config.vocab_size)
    [result] = Engine(tiny_llama, drafter, config(eos_token_ids=frozenset({end}))).generate(requests([prompt], 30))
    assert result.token_ids == text[: first + 1]
    assert result.finish_reason == "stop"


def test_relaxed_accepts_what_strict_refuses_and_counts_it(tiny_llama: PreTrainedModel) -> None:
    prompt = prompts(tiny_llama, 1)[0]
    tiny_llama.set_attn_implementation("eager")
    with torch.inference_mode():
        first = tiny_llama(torch.tensor([prompt])).logits[0, -1]
    second_best = int(first.topk(2).indices[1])

    class SecondBest:
        def resolve(self, group: str) -> str | None:
            return group

        def draft(self, group: str, tokens: Sequence[int], max_nodes: int) -> DraftTree:
            n = 0 if tokens else 1
            return DraftTree(np.full(n, second_best, np.int32), np.full(n, -1, np.int32), np.ones(n, np.float32))

    relaxed = config(rule=Rule("relaxed", top_k=2, min_prob=0.0))
    [strict_result] = Engine(tiny_llama, SecondBest(), config()).generate(requests([prompt], 4))
    [relaxed_result] = Engine(tiny_llama, SecondBest(), relaxed).generate(requests([prompt], 4))
    assert strict_result.token_ids[0] != second_best
    assert relaxed_result.token_ids[0] == second_best
    assert relaxed_result.statistics.relaxed == relaxed_result.statistics.accepted == 1
    [too_improbable] = Engine(tiny_llama, SecondBest(), config(rule=Rule("relaxed", 2, 0.999))).generate(
        requests([prompt], 4)
    )
    assert too_improbable.token_ids == strict_result.token_ids


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "reason"),
    [
        ([], 4, "no tokens"),
        ([5, 97], 4, "outside 0..96"),
        ([-1], 4, "outside 0..96"),
        ([5] * 127, 4, "exceed"),
        ([5], 0, "max_new_tokens is 0"),
    ],
)
def test_a_request_that_cannot_be_served_fails_alone(
    tiny_llama: PreTrainedModel, prompt: list[int], new_tokens: int, reason: str
) -> None:
    good = [3, 4, 5]
    asked = [Request("good", "g", good, 6), Request("bad", "g", prompt, new_tokens)]
    results = {r.id: r for r in Engine(tiny_llama, None, config()).generate(asked)}
    assert reason in str(results["bad"].error)
    assert results["bad"].token_ids == []
    assert results["good"].token_ids == greedy(tiny_llama, good, 6)


def test_logits_that_are_not_finite_fail_their_own_sequence_only(tiny_llama: PreTrainedModel) -> None:
    embeddings = tiny_llama.get_input_embeddings().weight
    saved = embeddings[50].clone()
    with torch.no_grad():
        embeddings[50] = float("nan")
    asked = requests([[3, 4], [50, 4], [5, 6]], 3)
    try:  # the third takes the slot of the broken second
        results = {r.id: r for r in Engine(tiny_llama, None, config(max_sequences=2)).generate(asked)}
    finally:
        with torch.no_grad():
            embeddings[50] = saved
    assert results["1"].error == "the model's logits are not finite"
    assert results["0"].error is results["2"].error is None


def test_a_model_whose_attention_cannot_be_replaced_is_refused(tiny_llama: PreTrainedModel) -> None:
    class Foreign(type(tiny_llama)):  # type: ignore[misc]
        _supports_attention_backend = False

    foreign = Foreign(tiny_llama.config)
    with pytest.raises(ModelError, match="attention interface"):
        Engine(foreign, None, config())


def test_a_real_pool_drafts_texts_it_holds_in_few_steps(tiny_llama: PreTrainedModel, tmp_path: object) -> None:
    asked = prompts(tiny_llama, 3)
    texts = [greedy(tiny_llama, prompt, NEW_TOKENS) for prompt in asked]
    table = pa.table({"group": ["g"] * 3, "token_ids": pa.array(texts, pa.list_(pa.int32()))})
    store = PoolStore(tmp_path)  # type: ignore[arg-type]
    store.build(table, "tiny", "hash", tiny_llama.config.vocab_size)
    pool: Pool = store.open("hash")
    for result in Engine(tiny_llama, pool, config()).generate(
        [Request(str(i), "g", p, NEW_TOKENS) for i, p in enumerate(asked)]
    ):
        assert result.token_ids == texts[int(result.id)]
        assert result.statistics.steps < NEW_TOKENS / 3
        assert result.draft_group == "g"


def test_looping_is_seen_when_the_last_tokens_stood_there_before() -> None:
    assert not is_looping(list(range(40)))
    assert not is_looping([1, 2, 3] * 2)
    assert is_looping(list(range(20)) * 2)
    assert is_looping([7] * 10)
