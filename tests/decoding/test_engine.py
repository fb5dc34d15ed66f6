import copy
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dare_core.decoding import Engine, EngineConfig, Request, Rule
from dare_core.decoding.attention import current
from dare_core.decoding.engine import PackedStep
from dare_core.decoding.step_cost import StepCost
from dare_core.decoding.verification import Judgement
from dare_core.drafts import Drafter
from dare_core.errors import ModelError
from dare_core.pools import Pool, PoolBuilder, PoolStore
from dare_core.pools.drafter import PoolDrafter
from tests.decoding.conftest import VOCABULARY
from tests.decoding.reference import greedy, is_tie
from tests.decoding.scripted import Scripted, noisy

NEW_TOKENS = 40


def prompts(model: PreTrainedModel, n: int, seed: int = 5) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, model.config.vocab_size, random.integers(1, 30)).tolist() for _ in range(n)]


def config(**changes: object) -> EngineConfig:
    values: dict[str, object] = {
        "max_sequences": 3,
        "max_length": 128,
        "draft_nodes": 16,
        "budget": "fixed",
        "rule": Rule("strict"),
        "eos_token_ids": frozenset({1}),
    }
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


def engine_of(model: PreTrainedModel, drafter: Drafter | None, config: EngineConfig) -> Engine:
    """An engine that takes over a copy, so that the model can still say what is right."""
    return Engine(copy.deepcopy(model), drafter, config)


def requests(asked: list[list[int]], new_tokens: int = NEW_TOKENS) -> list[Request]:
    return [Request(str(i), str(i), prompt, new_tokens) for i, prompt in enumerate(asked)]


@pytest.mark.usefixtures("arithmetic")
def test_strict_equals_greedy_generate_whatever_is_drafted(tiny_model: PreTrainedModel) -> None:
    asked = prompts(tiny_model, 8)
    expected = [greedy(tiny_model, prompt, NEW_TOKENS) for prompt in asked]
    drafter = noisy({str(i): text for i, text in enumerate(expected)}, tiny_model.config.vocab_size)
    results = {r.id: r for r in engine_of(tiny_model, drafter, config()).generate(requests(asked))}
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
    for result in engine_of(tiny_llama, None, config()).generate(requests(asked, 10)):
        assert result.token_ids == expected[int(result.id)]
        assert result.statistics.steps == result.statistics.new_tokens == len(result.token_ids)
        assert result.statistics.drafted == 0


def test_a_text_does_not_depend_on_batch_size_or_order(tiny_llama: PreTrainedModel) -> None:
    asked = requests(prompts(tiny_llama, 6), 20)
    one = {r.id: r.token_ids for r in engine_of(tiny_llama, None, config(max_sequences=1)).generate(asked)}
    many = {r.id: r.token_ids for r in engine_of(tiny_llama, None, config(max_sequences=6)).generate(asked[::-1])}
    assert one == many


def test_statistics_add_up(tiny_llama: PreTrainedModel) -> None:
    asked = prompts(tiny_llama, 4)
    texts = {str(i): greedy(tiny_llama, prompt, NEW_TOKENS) for i, prompt in enumerate(asked)}
    drafter = noisy(texts, tiny_llama.config.vocab_size)
    for result in engine_of(tiny_llama, drafter, config()).generate(requests(asked)):
        figures = result.statistics
        assert figures.prompt_tokens == len(asked[int(result.id)])
        assert figures.new_tokens == len(result.token_ids)
        # every step emits its accepted nodes and one token of the target's own, but for a last one cut at the length
        assert figures.steps <= figures.new_tokens <= figures.accepted + figures.steps
        assert 0 <= figures.accepted <= figures.drafted


def test_nothing_is_drafted_beyond_a_texts_length(tiny_llama: PreTrainedModel) -> None:
    prompt = prompts(tiny_llama, 1)[0]
    text = greedy(tiny_llama, prompt, 6)

    def chain(group: str, output: list[int], max_nodes: int) -> tuple[list[int], list[int]]:
        right = [*text[len(output) :], 5, 5, 5]
        return right, list(range(-1, len(right) - 1))

    [result] = engine_of(tiny_llama, Scripted(chain), config(max_length=len(prompt) + 6)).generate(
        requests([prompt], 6)
    )
    assert result.token_ids == text
    assert (result.statistics.steps, result.statistics.drafted, result.statistics.accepted) == (1, 5, 5)


def test_the_text_stops_at_the_end_of_sequence_even_inside_a_draft(tiny_llama: PreTrainedModel) -> None:
    prompt = prompts(tiny_llama, 1)[0]
    text = greedy(tiny_llama, prompt, 30)
    end = text[7]
    first = text.index(end)
    drafter = noisy({"0": text}, tiny_llama.config.vocab_size)
    [result] = engine_of(tiny_llama, drafter, config(eos_token_ids=frozenset({end}))).generate(requests([prompt], 30))
    assert result.token_ids == text[: first + 1]
    assert result.finish_reason == "stop"


def test_relaxed_accepts_what_strict_refuses_and_counts_it(tiny_llama: PreTrainedModel) -> None:
    prompt = prompts(tiny_llama, 1)[0]
    tiny_llama.set_attn_implementation("eager")
    with torch.inference_mode():
        first = tiny_llama(torch.tensor([prompt])).logits[0, -1]
    second_best = int(first.topk(2).indices[1])

    drafter = Scripted(lambda group, output, max_nodes: ([], []) if output else ([second_best], [-1]))
    relaxed = config(rule=Rule("relaxed", top_k=2, min_prob=0.0))
    [strict_result] = engine_of(tiny_llama, drafter, config()).generate(requests([prompt], 4))
    [relaxed_result] = engine_of(tiny_llama, drafter, relaxed).generate(requests([prompt], 4))
    assert strict_result.token_ids[0] != second_best
    assert relaxed_result.token_ids[0] == second_best
    assert relaxed_result.statistics.relaxed == relaxed_result.statistics.accepted == 1
    [too_improbable] = engine_of(tiny_llama, drafter, config(rule=Rule("relaxed", 2, 0.999))).generate(
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
    results = {r.id: r for r in engine_of(tiny_llama, None, config()).generate(asked)}
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
        results = {r.id: r for r in engine_of(tiny_llama, None, config(max_sequences=2)).generate(asked)}
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
    PoolBuilder(store, "tiny", "hash", tiny_llama.config.vocab_size).build(table)
    pool = Pool.open(store, "hash")
    for result in engine_of(tiny_llama, PoolDrafter(pool), config()).generate(
        [Request(str(i), "g", p, NEW_TOKENS) for i, p in enumerate(asked)]
    ):
        assert result.token_ids == texts[int(result.id)]
        assert result.statistics.steps < NEW_TOKENS / 3
        assert result.draft_group == "g"


@pytest.mark.usefixtures("arithmetic")
def test_prompts_longer_than_a_step_takes_are_read_in_chunks(tiny_model: PreTrainedModel) -> None:
    asked = prompts(tiny_model, 6)
    expected = [greedy(tiny_model, prompt, 12) for prompt in asked]
    drafter = noisy({str(i): text for i, text in enumerate(expected)}, tiny_model.config.vocab_size)
    engine = engine_of(tiny_model, drafter, config(prefill_rows=5))
    results = {result.id: result for result in engine.generate(requests(asked, 12))}
    for i, (prompt, text) in enumerate(zip(asked, expected, strict=True)):
        got = results[str(i)].token_ids
        assert got == text or is_tie(tiny_model, prompt, text, got)
    assert engine.statistics.prompt_tokens == sum(map(len, asked))


def test_a_prompt_that_begins_like_an_earlier_one_is_not_read_twice(tiny_model: PreTrainedModel) -> None:
    common = prompts(tiny_model, 1, seed=8)[0] + [7] * 20
    asked = [[*common, *tail] for tail in ([3, 4], [5], [3, 9, 11], [])]
    expected = [greedy(tiny_model, prompt, 10) for prompt in asked]
    for size, read_once in ((2, 2), (4, 3)):  # four have room for a prefix, which is held once
        engine = engine_of(tiny_model, None, config(max_sequences=size, prefill_rows=len(common)))
        results = {result.id: result.token_ids for result in engine.generate(requests(asked, 10))}
        for i, (prompt, text) in enumerate(zip(asked, expected, strict=True)):
            assert results[str(i)] == text or is_tie(tiny_model, prompt, text, results[str(i)])
        assert engine.statistics.shared_tokens >= read_once * (len(common) - 1)


def test_sequences_wait_while_the_cache_is_full_and_none_is_lost(tiny_llama: PreTrainedModel) -> None:
    asked = prompts(tiny_llama, 7)
    one = 2 * 3 * 2 * 16 * 4 * (128 + 16)  # keys and values x layers x heads x head size x fp32 x positions
    engine = engine_of(tiny_llama, None, config(max_sequences=7, cache_bytes=2 * one + 1))
    results = {result.id: result for result in engine.generate(requests(asked, 6))}
    assert len(results) == 7
    assert all(result.token_ids == greedy(tiny_llama, asked[int(i)], 6) for i, result in results.items())
    with pytest.raises(ModelError, match="holds no sequence"):
        engine_of(tiny_llama, None, config(cache_bytes=one - 1))


def test_when_memory_runs_out_fewer_sequences_run_and_none_is_lost(tiny_llama: PreTrainedModel) -> None:
    asked = prompts(tiny_llama, 6)
    expected = [greedy(tiny_llama, prompt, 12) for prompt in asked]
    model = copy.deepcopy(tiny_llama)
    forward, sizes = model.forward, []

    def scarce(**inputs: object) -> object:
        wanted = len(current().logit_rows)
        if len(sizes) > 4 and wanted > 2:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        sizes.append(wanted)
        return forward(**inputs)

    engine = Engine(model, None, config(max_sequences=5))
    model.forward = scarce
    results = {result.id: result.token_ids for result in engine.generate(requests(asked, 12))}
    assert max(sizes[:5]) > 2 >= max(sizes[5:])
    assert [results[str(i)] for i in range(6)] == expected


def test_a_text_that_does_not_fit_even_alone_fails_and_says_so(tiny_llama: PreTrainedModel) -> None:
    def scarce(**inputs: object) -> object:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    model = copy.deepcopy(tiny_llama)
    engine = Engine(model, None, config())
    model.forward = scarce
    results = list(engine.generate(requests([[3], [4]], 3)))
    assert [result.error for result in results] == ["out of memory even alone: tried to allocate 2 GiB"] * 2


def test_tokens_are_told_as_they_come(tiny_llama: PreTrainedModel) -> None:
    asked = prompts(tiny_llama, 4)
    texts = {str(i): greedy(tiny_llama, prompt, NEW_TOKENS) for i, prompt in enumerate(asked)}
    told: dict[str, list[int]] = {name: [] for name in texts}
    engine = engine_of(tiny_llama, noisy(texts, VOCABULARY), config())
    results = list(engine.generate(requests(asked), lambda name, tokens: told[name].extend(tokens)))
    assert told == {result.id: result.token_ids for result in results}


def test_tokens_of_an_answers_structure_are_never_relaxed(tiny_llama: PreTrainedModel) -> None:
    prompt = prompts(tiny_llama, 1)[0]
    tiny_llama.set_attn_implementation("eager")
    with torch.inference_mode():
        first_choices = tiny_llama(torch.tensor([prompt])).logits[0, -1].topk(2).indices.tolist()
    best, second_best = first_choices
    drafter = Scripted(lambda group, output, max_nodes: ([], []) if output else ([second_best], [-1]))
    relaxed = config(rule=Rule("relaxed", top_k=2, min_prob=0.0))
    [harmless] = engine_of(tiny_llama, drafter, relaxed).generate(requests([prompt], 4))
    assert harmless.token_ids[0] == second_best
    for structural in first_choices:
        engine = engine_of(tiny_llama, drafter, replace(relaxed, structural_token_ids=frozenset({structural})))
        [held] = engine.generate(requests([prompt], 4))
        assert (held.token_ids[0], held.statistics.relaxed) == (best, 0)


def test_what_is_drafted_from_the_text_itself_is_never_relaxed(tiny_llama: PreTrainedModel) -> None:
    prompt = prompts(tiny_llama, 1)[0]
    tiny_llama.set_attn_implementation("eager")
    with torch.inference_mode():
        best, second_best = tiny_llama(torch.tensor([prompt])).logits[0, -1].topk(2).indices.tolist()
    drafter = Scripted(lambda group, output, max_nodes: ([], []) if output else ([second_best], [-1]))
    drafter.own_evidence = np.ones(1, np.bool_)
    [held] = engine_of(tiny_llama, drafter, config(rule=Rule("relaxed", 2, 0.0))).generate(requests([prompt], 4))
    assert (held.token_ids[0], held.statistics.relaxed) == (best, 0)


def test_the_drafter_learns_finished_texts_and_which_tokens_were_relaxed(tiny_llama: PreTrainedModel) -> None:
    prompt = prompts(tiny_llama, 1)[0]
    tiny_llama.set_attn_implementation("eager")
    with torch.inference_mode():
        second_best = int(tiny_llama(torch.tensor([prompt])).logits[0, -1].topk(2).indices[1])
    drafter = Scripted(lambda group, output, max_nodes: ([], []) if output else ([second_best], [-1]))
    [result] = engine_of(tiny_llama, drafter, config(rule=Rule("relaxed", 2, 0.0))).generate(requests([prompt], 4))
    assert drafter.learned == [(result.token_ids, [False, True, True, True])]


def test_a_measured_budget_drafts_what_is_certain_and_nothing_that_never_passes(tiny_llama: PreTrainedModel) -> None:
    prompt = next(p for p in prompts(tiny_llama, 30) if len(greedy(tiny_llama, p, 60)) == 60)
    text = greedy(tiny_llama, prompt, 60)

    def chain(group: str, output: list[int], max_nodes: int) -> tuple[list[int], list[int]]:
        right = [*text[len(output) :], 0, 0][:8]
        return (right if group == "right" else [96 - token for token in right]), list(range(-1, len(right) - 1))

    def steps_of(group: str) -> tuple[int, int]:
        engine = engine_of(tiny_llama, Scripted(chain), config(budget="measured", max_length=160))
        engine.step_cost = StepCost(np.array([1.0, 200.0]), np.array([1.0, 20.0]))  # a node costs a tenth of a step
        [result] = engine.generate([Request("0", group, prompt, 60)])
        assert result.token_ids == text
        return result.statistics.steps, result.statistics.drafted

    assert steps_of("right")[0] < 20
    steps, drafted = steps_of("wrong")
    assert steps == 60
    assert drafted < 120  # of 480 offered: it soon stopped


def test_an_observer_is_told_what_each_step_drafted_and_judged(tiny_llama: PreTrainedModel) -> None:
    asked = prompts(tiny_llama, 4)
    texts = {str(i): greedy(tiny_llama, prompt, NEW_TOKENS) for i, prompt in enumerate(asked)}
    told: list[tuple[int, int, int]] = []

    def observe(step: PackedStep, probabilities: NDArray[np.float64], judgement: Judgement, seconds: float) -> None:
        assert probabilities.shape == judgement.passes.shape == (len(step.forest),)
        assert len(judgement.chosen) == step.emitting.sum() + len(step.forest)
        assert (step.seen + step.chains <= [text.context.length for text in step.texts]).all()
        assert seconds > 0
        told.append((step.rows, int(step.emitting.sum()), len(step.forest)))

    drafter = noisy(texts, VOCABULARY)
    engine = Engine(copy.deepcopy(tiny_llama), drafter, config(prefill_rows=7), observe)
    results = {result.id: result.token_ids for result in engine.generate(requests(asked))}
    assert results == texts
    total = engine.statistics
    assert [sum(each) for each in zip(*told, strict=True)] == [total.rows, total.decode_steps, total.drafted]
    assert len(told) == total.steps
