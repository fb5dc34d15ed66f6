"""What an engine makes of full memory, of logits that are not finite, and of unusual requests."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from dare_core.decoding import Engine, Request
from dare_core.decoding.attention import current
from tests.decoding.reference import greedy
from tests.decoding.scripted import Scripted, noisy
from tests.decoding.test_engine import config, engine_of, prompts, requests


def failing_once(call: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    left = [torch.OutOfMemoryError("tried to allocate 2 GiB"), MemoryError()]

    def scarce(*arguments: Any) -> Any:
        if left and when(*arguments):
            raise left.pop()
        return call(*arguments)

    return scarce


@pytest.mark.parametrize("part", ["draft", "verify", "settle", "move"])
def test_memory_that_runs_out_in_any_part_of_a_step_loses_no_text(tiny_llama: PreTrainedModel, part: str) -> None:
    asked = prompts(tiny_llama, 6)
    expected = [greedy(tiny_llama, prompt, 12) for prompt in asked]
    drafter = noisy({str(i): text for i, text in enumerate(expected)}, tiny_llama.config.vocab_size)
    engine = engine_of(tiny_llama, drafter, config(max_sequences=5))
    owner = engine._cache if part == "move" else engine._speculation
    moving = part == "move"
    scarce = failing_once(
        getattr(owner, part), lambda *given: len(engine._running) > 1 and (not moving or len(given[0]))
    )
    setattr(owner, part, scarce)
    results = {result.id: result for result in engine.generate(requests(asked, 12))}
    assert [results[str(i)].token_ids for i in range(6)] == expected
    assert all(result.error is None for result in results.values())


def test_a_shortage_halves_the_batch_and_it_grows_back(tiny_llama: PreTrainedModel) -> None:
    model = copy.deepcopy(tiny_llama)
    forward, sizes = model.forward, []
    engine = Engine(model, None, config(max_sequences=4, eos_token_ids=frozenset()))

    def scarce(**inputs: object) -> object:
        sizes.append(len(current().logit_rows))
        if len(sizes) == 5:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return forward(**inputs)

    model.forward = scarce
    results = list(engine.generate(requests([[3, 4]] * 8, 60)))
    assert [result.error for result in results] == [None] * 8
    assert sizes[3] == sizes[4] == 4
    assert set(sizes[5:30]) == {2}
    assert max(sizes[30:]) == 4


@pytest.mark.usefixtures("arithmetic")
def test_what_is_not_finite_behind_a_rejected_draft_fails_no_text(tiny_llama: PreTrainedModel) -> None:
    asked = prompts(tiny_llama, 3, seed=8)
    asked = [[token for token in prompt if token != 50] for prompt in asked]
    expected = [greedy(tiny_llama, prompt, 16) for prompt in asked]
    assert not any(50 in text for text in expected)
    # a wrong branch of the token that is not finite beside the right one
    drafter = Scripted(lambda group, output, most: ([*expected[int(group)][len(output) :][:1], 50], [-1, -1][:most]))
    broken = copy.deepcopy(tiny_llama)
    engine = Engine(broken, drafter, config())
    with torch.no_grad():
        broken.get_input_embeddings().weight[50] = float("nan")
    results = {result.id: result for result in engine.generate(requests(asked, 16))}
    assert [results[str(i)].error for i in range(3)] == [None] * 3
    assert [results[str(i)].token_ids for i in range(3)] == expected


def test_prompts_may_be_arrays_and_ids_equal(tiny_llama: PreTrainedModel) -> None:
    prompt = np.array([3, 4, 5])
    asked = [Request("same", "g", prompt, 6), Request("same", "g", prompt.copy(), 6)]
    assert asked[0] == asked[1]
    expected = greedy(tiny_llama, prompt.tolist(), 6)
    results = list(engine_of(tiny_llama, None, config()).generate(asked))
    assert [result.token_ids for result in results] == [expected] * 2


def test_an_engine_that_drafts_no_nodes_measures_no_costs(tiny_llama: PreTrainedModel) -> None:
    drafter = Scripted(lambda group, output, most: ([], []))
    assert engine_of(tiny_llama, drafter, config(draft_nodes=0, budget="measured")).step_cost is None
