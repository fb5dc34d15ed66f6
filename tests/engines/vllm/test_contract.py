"""What both engines owe: the same requests, results, failures and statistics."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from dare_core.decoding import EngineConfig, Request, Result, Rule
from dare_core.decoding.engine import is_looping
from dare_core.errors import PoolError
from dare_core.pools import Pool, PoolStore
from tests.decoding.reference import greedy, is_tie
from tests.engines.vllm.conftest import BROKEN, LENGTH, SEQUENCES, VOCABULARY, AnyEngine, Model, Open, prompts

NEW_TOKENS = 40
#: Only the pool is drafted from.
POOL_ALONE: dict[str, Any] = {"learned_tokens": 0, "use_own_text": False}
Build = Callable[..., Pool]


def config(**changes: Any) -> EngineConfig:
    values: dict[str, Any] = {
        "max_sequences": 3,
        "max_length": LENGTH,
        "draft_nodes": 16,
        "budget": "fixed",
        "rule": Rule("strict"),
        "eos_token_ids": frozenset({1}),
    }
    return EngineConfig(**(values | changes))


def requests(asked: list[list[int]], new_tokens: int = NEW_TOKENS) -> list[Request]:
    return [Request(str(i), "g", prompt, new_tokens) for i, prompt in enumerate(asked)]


def written(engine: AnyEngine, asked: list[Request]) -> dict[str, Result]:
    return {result.id: result for result in engine.generate(asked)}


def one(engine: AnyEngine, prompt: list[int], new_tokens: int) -> Result:
    [result] = engine.generate(requests([prompt], new_tokens))
    return result


@torch.inference_mode()
def choices(tiny: Model, context: list[int], n: int = 2) -> list[int]:
    tiny.model.set_attn_implementation("eager")
    top: list[int] = tiny.model(torch.tensor([context])).logits[0, -1].topk(n).indices.tolist()
    return top


def choice_to_make(tiny: Model) -> tuple[list[int], int, int, int]:
    """A prompt, its text's first token (no engine need draft that), and the best and second best behind it."""
    [prompt] = prompts(1)
    first = choices(tiny, prompt)[0]
    best, second = choices(tiny, [*prompt, first])
    return prompt, first, best, second


def test_strict_texts_are_greedy_ones_whatever_is_drafted(tiny: Model, open_engine: Open, make_pool: Build) -> None:
    asked = prompts(8)
    expected = [greedy(tiny.model, prompt, NEW_TOKENS) for prompt in asked]
    noisy = [[(token + 1) % BROKEN if at in (9, 25) else token for at, token in enumerate(text)] for text in expected]
    results = written(open_engine(make_pool({"g": noisy}), config(), {}), requests(asked))
    for i, (prompt, text) in enumerate(zip(asked, expected, strict=True)):
        result = results[str(i)]
        assert result.error is None
        assert result.token_ids == text or is_tie(tiny.model, prompt, text, result.token_ids)
        assert result.finish_reason == ("stop" if text[-1] == 1 else "length")
        assert result.statistics.relaxed == 0
    assert sum(result.statistics.accepted for result in results.values()) > 50


def test_without_a_drafter_every_step_emits_one_token(open_engine: Open) -> None:
    for result in written(open_engine(None, config(), None), requests(prompts(5))).values():
        assert result.statistics.steps == result.statistics.new_tokens == len(result.token_ids)
        assert result.statistics.drafted == result.statistics.accepted == 0
        assert result.draft_group is None


def test_texts_do_not_depend_on_who_is_decoded_beside_them(tiny: Model, open_engine: Open) -> None:
    asked = requests(prompts(6), 20)
    alone = written(open_engine(None, config(max_sequences=1), None), asked)
    beside = written(open_engine(None, config(max_sequences=SEQUENCES), None), asked[::-1])
    for request in asked:
        first, second = alone[request.id].token_ids, beside[request.id].token_ids
        assert first == second or is_tie(tiny.model, list(request.prompt_token_ids), first, second)


def test_statistics_add_up(tiny: Model, open_engine: Open, make_pool: Build) -> None:
    asked = prompts(4)
    pool = make_pool({"g": [greedy(tiny.model, prompt, NEW_TOKENS)[:30] for prompt in asked]})
    results = written(open_engine(pool, config(), {}), requests(asked))
    for result in results.values():
        figures = result.statistics
        assert figures.prompt_tokens == len(asked[int(result.id)])
        assert figures.new_tokens == len(result.token_ids)
        assert figures.steps <= figures.new_tokens <= figures.accepted + figures.steps
        assert 0 <= figures.accepted <= figures.drafted
        assert figures.seconds > 0
    assert sum(result.statistics.accepted for result in results.values()) > NEW_TOKENS


def test_texts_that_the_pool_holds_take_few_steps_and_end_at_their_length(
    tiny: Model, open_engine: Open, make_pool: Build
) -> None:
    asked = prompts(3)
    texts = [greedy(tiny.model, prompt, NEW_TOKENS) for prompt in asked]
    for result in open_engine(make_pool({"g": texts}), config(), POOL_ALONE).generate(requests(asked, 30)):
        assert result.token_ids == texts[int(result.id)][:30]
        assert result.statistics.steps < 10
        assert result.draft_group == "g"


def test_an_unknown_group_drafts_from_all_groups(tiny: Model, open_engine: Open, make_pool: Build) -> None:
    [prompt] = prompts(1)
    text = greedy(tiny.model, prompt, NEW_TOKENS)
    engine = open_engine(make_pool({"other": [text]}), config(), POOL_ALONE)
    result = one(engine, prompt, NEW_TOKENS)
    assert result.draft_group == "*"
    assert result.statistics.accepted > NEW_TOKENS / 2


def test_the_text_stops_at_the_end_of_sequence_even_inside_a_draft(
    tiny: Model, open_engine: Open, make_pool: Build
) -> None:
    [prompt] = prompts(1)
    text = greedy(tiny.model, prompt, 30)
    end = text[7]
    first = text.index(end)
    engine = open_engine(make_pool({"g": [text]}), config(eos_token_ids=frozenset({end})), POOL_ALONE)
    result = one(engine, prompt, 30)
    assert result.token_ids == text[: first + 1]
    assert result.finish_reason == "stop"
    assert result.statistics.accepted <= result.statistics.new_tokens


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        (Rule("relaxed", 2, 0.0), True),
        (Rule("strict"), False),
        (Rule("relaxed", 2, 0.999), False),
        (Rule("relaxed", 1, 0.0), False),
        (Rule("relaxed", 2, 0.0, min_ratio=1.0), False),
    ],
)
def test_a_drafted_second_choice_passes_as_the_rule_has_it(
    tiny: Model, open_engine: Open, make_pool: Build, rule: Rule, passes: bool
) -> None:
    prompt, first, best, second = choice_to_make(tiny)
    pool = make_pool({"g": [[first, second]]})
    result = one(open_engine(pool, config(rule=rule), POOL_ALONE), prompt, 4)
    assert result.token_ids[:2] == [first, second if passes else best]
    assert (result.statistics.relaxed > 0) == passes


def test_the_end_and_an_answers_structure_are_never_relaxed(tiny: Model, open_engine: Open, make_pool: Build) -> None:
    prompt, first, best, second = choice_to_make(tiny)
    pool = make_pool({"g": [[first, second]]})
    relaxed = Rule("relaxed", 2, 0.0)
    for held in (
        config(rule=relaxed, eos_token_ids=frozenset({second})),
        config(rule=relaxed, eos_token_ids=frozenset({best})),
        config(rule=relaxed, structural_token_ids=frozenset({second})),
        config(rule=relaxed, structural_token_ids=frozenset({best})),
    ):
        assert one(open_engine(pool, held, POOL_ALONE), prompt, 4).token_ids[:2] == [first, best]


def test_no_more_tokens_in_a_row_pass_by_relaxation_than_the_rule_allows(
    tiny: Model, open_engine: Open, make_pool: Build
) -> None:
    prompt, *text = choice_to_make(tiny)[:2]
    for _ in range(5):
        text.append(choices(tiny, [*prompt, *text])[1])
    pool, relaxed = make_pool({"g": [text]}), {"top_k": 2, "min_prob": 0.0}
    free = one(open_engine(pool, config(rule=Rule("relaxed", **relaxed)), POOL_ALONE), prompt, 7)
    assert free.token_ids[:6] == text
    assert free.statistics.relaxed == 5
    held = one(open_engine(pool, config(rule=Rule("relaxed", max_run=2, **relaxed)), POOL_ALONE), prompt, 4)
    assert held.token_ids == [*text[:3], choices(tiny, [*prompt, *text[:3]])[0]]


def test_a_looping_text_is_held_to_strict_verification(tiny: Model, open_engine: Open, make_pool: Build) -> None:
    texts = ((prompt, greedy(tiny.model, prompt, 40)) for prompt in ([token] for token in range(3, BROKEN)))
    prompt, text, at = next(
        (prompt, text, at)
        for prompt, text in texts
        for at in range(14, len(text) - 2)
        # Looping is seen where a step begins, at most a draft before the token in question.
        if is_looping(np.array(text[: at - 5], np.int32))
    )
    second = choices(tiny, [*prompt, *text[:at]])[1]
    pool = make_pool({"g": [[*text[:at], second]]})
    engine = open_engine(pool, config(rule=Rule("relaxed", 2, 0.0), draft_nodes=4), POOL_ALONE)
    assert one(engine, prompt, at + 2).token_ids[: at + 1] == text[: at + 1]


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "reason"),
    [
        ([], 4, "the prompt has no tokens"),
        ([5, VOCABULARY], 4, f"the prompt holds a token id outside 0..{VOCABULARY - 1}"),
        ([-1], 4, f"the prompt holds a token id outside 0..{VOCABULARY - 1}"),
        ([5] * (LENGTH - 3), 4, f"{LENGTH - 3} prompt tokens and 4 new ones exceed the engine's length of {LENGTH}"),
        ([5], 0, "max_new_tokens is 0; at least 1 is needed"),
    ],
)
def test_a_request_that_cannot_be_served_fails_alone(
    tiny: Model, open_engine: Open, prompt: list[int], new_tokens: int, reason: str
) -> None:
    good = [3, 4, 5]
    asked = [Request("good", "g", good, 6), Request("bad", "g", prompt, new_tokens)]
    results = written(open_engine(None, config(), {}), asked)
    assert (results["bad"].error, results["bad"].token_ids) == (reason, [])
    assert results["good"].token_ids == greedy(tiny.model, good, 6)


def test_the_longest_request_that_fits_is_written_to_its_end(tiny: Model, open_engine: Open, make_pool: Build) -> None:
    [prompt] = prompts(1)
    prompt = (prompt * LENGTH)[: LENGTH - 20]
    text = greedy(tiny.model, prompt, 20)
    result = one(open_engine(make_pool({"g": [text]}), config(), {}), prompt, 20)
    assert result.token_ids == text or is_tie(tiny.model, prompt, text, result.token_ids)


@pytest.mark.parametrize("drafter", [None, {}], ids=["plainly", "drafting"])
def test_logits_that_are_not_finite_fail_their_own_text_only(
    tiny: Model, open_engine: Open, drafter: dict[str, Any] | None
) -> None:
    asked = requests([[3, 4], [BROKEN, 4], [5, 6]], 12)  # the third takes the place of the broken second
    results = written(open_engine(None, config(max_sequences=2), drafter), asked)
    assert results["1"].error == "the model's logits are not finite"
    assert (results["1"].token_ids, results["1"].finish_reason) == ([], None)
    for name, prompt in (("0", [3, 4]), ("2", [5, 6])):
        text = greedy(tiny.model, prompt, 12)
        assert results[name].error is None
        assert results[name].token_ids == text or is_tie(tiny.model, prompt, text, results[name].token_ids)


def test_a_measured_budget_changes_no_text(tiny: Model, open_engine: Open, make_pool: Build) -> None:
    asked = prompts(6)
    expected = [greedy(tiny.model, prompt, NEW_TOKENS) for prompt in asked]
    pool = make_pool({"g": [text[:30] for text in expected]})
    results = written(open_engine(pool, config(budget="measured", max_sequences=SEQUENCES), {}), requests(asked))
    for i, (prompt, text) in enumerate(zip(asked, expected, strict=True)):
        assert results[str(i)].token_ids == text or is_tie(tiny.model, prompt, text, results[str(i)].token_ids)


def test_tokens_are_told_as_they_come(tiny: Model, open_engine: Open, make_pool: Build) -> None:
    asked = prompts(4)
    pool = make_pool({"g": [greedy(tiny.model, prompt, NEW_TOKENS) for prompt in asked]})
    told: dict[str, list[list[int]]] = {str(i): [] for i in range(len(asked))}
    engine = open_engine(pool, config(), {})
    results = list(engine.generate(requests(asked), lambda name, tokens: told[name].append(list(tokens))))
    assert {name: [*chain(*parts)] for name, parts in told.items()} == {r.id: r.token_ids for r in results}
    assert all(len(told[result.id]) == result.statistics.steps for result in results)


def test_finished_texts_are_drafted_from(tiny: Model, open_engine: Open) -> None:
    [prompt] = prompts(1)
    engine = open_engine(None, config(max_sequences=1), {"use_own_text": False})
    first, second = one(engine, prompt, NEW_TOKENS), one(engine, prompt, NEW_TOKENS)
    assert first.token_ids == second.token_ids
    assert second.statistics.steps < first.statistics.steps / 2


def test_a_run_drafts_from_the_version_it_was_opened_with(tiny: Model, open_engine: Open, make_pool: Build) -> None:
    [prompt] = prompts(1)
    text = greedy(tiny.model, prompt, NEW_TOKENS)
    before = make_pool({"g": [[3, 4, 5]]})
    after = make_pool({"g": [text]}, add=True)
    assert before.manifest.version != after.manifest.version
    steps = [one(open_engine(p, config(), POOL_ALONE), prompt, NEW_TOKENS).statistics.steps for p in (before, after)]
    assert steps[1] < steps[0] / 2


def test_requests_with_one_id_are_both_written_and_wait_for_their_place(open_engine: Open) -> None:
    engine = open_engine(None, config(max_sequences=1), None)
    engine.add([Request("same", "g", [3, 4], 3), Request("same", "g", [5, 6], 4)])
    assert engine.busy
    results = []
    while engine.busy:
        results += engine.step()
    assert [(result.id, len(result.token_ids)) for result in results] == [("same", 3), ("same", 4)]
    assert engine.waiting == 0


def test_a_run_that_is_given_up_does_not_disturb_the_next(tiny: Model, open_engine: Open) -> None:
    [prompt, *others] = prompts(5)
    given_up = open_engine(None, config(max_sequences=2), {})
    given_up.add(requests(others))
    given_up.step()
    assert one(open_engine(None, config(), {}), prompt, 20).token_ids == greedy(tiny.model, prompt, 20)


def test_a_pool_that_is_gone_is_named(open_engine: Open, make_pool: Build, tmp_path: Any) -> None:
    pool = make_pool({"g": [[3, 4, 5]]})
    for file in (tmp_path / "pool" / "segments").iterdir():
        file.unlink()
    with pytest.raises(PoolError, match="segments"):
        one(open_engine(pool, config(), {}), [3], 3)
    with pytest.raises(PoolError):
        Pool.open(PoolStore(tmp_path / "pool"), "hash")
