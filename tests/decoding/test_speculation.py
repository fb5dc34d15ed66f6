"""What is drafted, may pass, is emitted and counted: decided in one place, for engines that verify trees and paths."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dare_core.decoding import Request, Rule
from dare_core.decoding.budget import Cost
from dare_core.decoding.speculation import NOT_FINITE, Continuation, Outcome, Speculation, Step, Text
from dare_core.drafts import Context, Forest
from tests.decoding.scripted import Scripted, joined, tree

VOCABULARY, END, BRACE = 10, 9, 8
RELAXED = Rule("relaxed", 3, 0.01)


def text(output: Sequence[int] = (), new_tokens: int = 20, prompt: Sequence[int] = (1, 2)) -> Text:
    """One that has written ``output`` and may write ``new_tokens`` more."""
    tokens = np.zeros(400, np.int32)
    length = len(prompt) + len(output)
    tokens[:length] = [*prompt, *output]
    request = Request("t", "g", prompt, len(output) + new_tokens)
    return Text(request=request, context=Context("g", tokens, len(prompt), length), draft_group="g")


def drafting(nodes: Sequence[int], parents: Sequence[int]) -> Scripted:
    """The same tree for every text."""
    return Scripted(lambda group, output, max_nodes: (list(nodes), list(parents)))


def speculation(drafter: Scripted | None, rule: Rule = RELAXED, nodes: int = 16) -> Speculation:
    return Speculation(drafter, rule, nodes, frozenset({END, BRACE}), VOCABULARY, torch.device("cpu"))


def step_of(texts: Sequence[Text], *trees: Forest, emitting: Sequence[bool] | None = None) -> Step:
    forest = joined(trees)
    emits = np.ones(len(texts), np.bool_) if emitting is None else np.array(emitting)
    return Step(texts, forest, np.concatenate([[0], np.cumsum(emits + forest.sizes)]))


def logits_for(chosen: Sequence[int], runners_up: Sequence[int] | None = None) -> torch.Tensor:
    """``[rows, vocabulary]``: each row's best token, and its second best, which is nearly as good."""
    logits = torch.full((len(chosen), VOCABULARY), -20.0)
    for row, token in enumerate(runners_up or ()):
        logits[row, token] = 1.0
    for row, token in enumerate(chosen):
        logits[row, token] = 1.5
    return logits


def outcome_of(decided: Speculation, step: Step, logits: torch.Tensor) -> Outcome:
    return decided.settle(step, decided.verify(step, logits))


def free(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.ones(len(rows))


def dear(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return rows.astype(np.float64)


# What a text emits


def test_a_text_takes_the_path_and_the_targets_own_token_and_counts_them() -> None:
    one = text(prompt=[1, 2, 3])
    assert one.emit(Continuation([4, 5, 6], [True, False], drafted=7), frozenset({END})) == [4, 5, 6]
    assert one.context.output.tolist() == [4, 5, 6]
    assert one.trusted == [True, False, True]
    assert (one.wanted, one.finish_reason) == (17, None)
    figures = one.statistics
    assert (figures.prompt_tokens, figures.new_tokens, figures.steps) == (3, 3, 1)
    assert (figures.drafted, figures.accepted, figures.relaxed) == (7, 2, 1)


@pytest.mark.parametrize(
    ("tokens", "chosen", "emitted", "trusted"),
    [
        ([4, END, 5, 6], [True, True, False], [4, END], [True, True]),  # inside the path
        ([4, 5, END], [False, True], [4, 5, END], [False, True, True]),  # the target's own
        ([END], [], [END], [True]),
    ],
)
def test_a_text_ends_at_an_end_of_sequence_and_counts_nothing_behind_it(
    tokens: list[int], chosen: list[bool], emitted: list[int], trusted: list[bool]
) -> None:
    one = text()
    assert one.emit(Continuation(tokens, chosen, drafted=3), frozenset({END})) == emitted
    assert (one.finish_reason, one.trusted) == ("stop", trusted)
    assert one.statistics.new_tokens == len(emitted)
    assert one.statistics.accepted == min(len(chosen), len(emitted))
    assert one.statistics.relaxed == trusted.count(False)
    assert one.result().token_ids == emitted


def test_a_text_ends_at_its_length_and_says_stop_where_its_last_token_is_an_end() -> None:
    one, other = text(new_tokens=2), text(new_tokens=2)
    one.emit(Continuation([4, 5], [True], 1), frozenset({END}))
    other.emit(Continuation([4, END], [True], 1), frozenset({END}))
    assert (one.result().finish_reason, other.result().finish_reason) == ("length", "stop")


def test_a_text_that_failed_has_no_tokens_and_no_reason_to_have_ended() -> None:
    one = text()
    one.emit(Continuation([END], [], 0), frozenset({END}))  # as vLLM is made to end it
    one.error = NOT_FINITE
    result = one.result()
    assert (result.token_ids, result.finish_reason, result.error) == ([], None, NOT_FINITE)


# What is drafted


def test_nothing_is_drafted_deeper_than_a_text_may_still_emit() -> None:
    decided = speculation(drafting([3, 4, 5, 6], [-1, 0, 1, 2]))
    forest = decided.draft([text(new_tokens=1), text(new_tokens=3), text(new_tokens=9)], 3, cost=None)
    assert forest.sizes.tolist() == [0, 2, 4]


def test_an_engine_that_verifies_paths_gets_the_best_of_each_tree_no_longer_than_it_takes() -> None:
    # A short branch, and a long one of which most tokens are expected.
    decided = speculation(drafting([3, 4, 5, 6, 7], [-1, -1, 1, 2, 3]))
    whole = decided.draft([text()], 1, cost=None)
    assert whole.tokens.tolist() == [3, 4, 5, 6, 7]
    for longest, path in ((9, [4, 5, 6, 7]), (2, [4, 5]), (1, [3])):
        forest = decided.draft([text()], 1, None, longest)
        assert forest.tokens.tolist() == path
        assert forest.parents.tolist() == list(range(-1, len(path) - 1))
    assert decided.draft([text(new_tokens=3)], 1, None, longest=9).tokens.tolist() == [4, 5]


@pytest.mark.parametrize("longest", [None, 4])
@pytest.mark.parametrize(("cost", "verified"), [(free, 3), (dear, 0)])
def test_what_does_not_pay_is_not_verified(cost: Cost, verified: int, longest: int | None) -> None:
    decided = speculation(drafting([3, 4, 5], [-1, 0, 1]))
    assert len(decided.draft([text()], 1, cost, longest)) == verified


def test_nothing_is_drafted_without_a_drafter_or_room_for_nodes_or_texts() -> None:
    chain = drafting([3], [-1])
    for decided in (speculation(None), speculation(chain, nodes=0)):
        assert decided.draft([text(), text()], 2, None).sizes.tolist() == [0, 0]
    assert speculation(None).draft_group("g") is None
    assert len(speculation(chain).draft([], 5, free).sizes) == 0


# What may pass


def test_neither_looping_texts_nor_a_texts_own_words_are_relaxed() -> None:
    drafter = drafting([], [])
    drafter.evidence_kinds, drafter.own_evidence = 2, np.array([False, True])
    decided = speculation(drafter)
    branches = tree([3, 4], [-1, -1])
    branches.evidence[1] = 1  # drafted from the text's own words
    step = step_of([text([3, 4, 5]), text([7] * 12), text()], branches, branches, branches)
    assert decided.may_relax(step).tolist() == [True, False, False, False, True, False]
    drafter.own_evidence = np.zeros(2, np.bool_)
    assert decided.may_relax(step).tolist() == [True, True, False, False, True, True]
    assert not speculation(drafter, Rule("strict")).may_relax(step).any()


def test_the_prompt_is_no_part_of_what_loops() -> None:
    decided = speculation(drafting([], []))
    assert decided.may_relax(step_of([text([5], prompt=[7] * 20)], tree([3], [-1]))).all()


@pytest.mark.parametrize(
    ("best", "drafted", "passes"), [(3, 4, True), (END, 4, False), (3, END, False), (3, BRACE, False)]
)
def test_ends_and_structure_are_neither_relaxed_nor_let_anything_beside_them_pass(
    best: int, drafted: int, passes: bool
) -> None:
    decided = speculation(drafting([], []))
    outcome = outcome_of(decided, step_of([text()], tree([drafted], [-1])), logits_for([best, 5], [drafted, 6]))
    expected = Continuation([drafted, 5], [False], 1) if passes else Continuation([best], [], 1)
    assert outcome.continuation(0) == expected


# What a step emits


def test_a_step_of_trees_emits_the_accepted_path_and_the_token_that_the_target_puts_behind_it() -> None:
    decided = speculation(drafting([], []))
    # A prompt that is still being read has no row of logits.
    reading = tree([], [])
    step = step_of([text(), text(), text()], tree([3, 4, 5, 6], [-1, 0, 0, 2]), reading, tree([7], [-1]),
                   emitting=[True, False, True])  # fmt: skip
    assert step.first_rows.tolist() == [0, 5, 5, 7]
    assert step.parent_rows.tolist() == [0, 1, 1, 3, 5]
    #                    the text, 3, 4, 5, 6 | the other, 7
    outcome = outcome_of(decided, step, logits_for([3, 5, 0, 6, 2, 1, 0]))
    assert outcome.continuation(0) == Continuation([3, 5, 6, 2], [True, True, True], 4)
    assert outcome.continuation(2) == Continuation([1], [], 1)
    assert outcome.paths.lengths.tolist() == [3, 0, 0]


def test_a_step_of_paths_may_have_rows_of_logits_that_nothing_was_drafted_for() -> None:
    """As vLLM pads a text whose prompt has one token left to read."""
    decided = speculation(drafting([], []))
    forest = joined([tree([], []), tree([3, 4], [-1, 0])])
    step = Step([text(), text()], forest, np.array([0, 3, 6]))
    assert step.parent_rows.tolist() == [3, 4]
    outcome = outcome_of(decided, step, logits_for([7, 0, 0, 3, 4, 5]))
    assert outcome.continuation(0) == Continuation([7], [], 0)
    assert outcome.continuation(1) == Continuation([3, 4, 5], [True, True], 2)


def test_logits_that_are_not_finite_are_their_own_texts_problem_only() -> None:
    decided = speculation(drafting([], []))
    logits = logits_for([3, 4, 3, 4])
    logits[1, 6] = torch.nan
    outcome = outcome_of(decided, step_of([text(), text()], tree([3], [-1]), tree([3], [-1])), logits)
    assert (outcome.problem(0), outcome.problem(1)) == (NOT_FINITE, None)


def test_what_is_not_finite_behind_a_rejected_draft_is_no_problem() -> None:
    decided = speculation(drafting([], []))
    logits = logits_for([3, 4, 3, 4])
    logits[1, 6] = logits[3, 6] = torch.nan
    outcome = outcome_of(decided, step_of([text(), text()], tree([5], [-1]), tree([3], [-1])), logits)
    assert (outcome.problem(0), outcome.problem(1)) == (None, NOT_FINITE)
    assert outcome.continuation(0).tokens == [3]


# What is learned


def test_drafts_that_never_pass_are_soon_taken_for_improbable_and_untried_ones_are_not_judged() -> None:
    decided = speculation(drafting([3, 4], [-1, 0]), Rule("strict"))
    forest = decided.draft([text()], 1, None)
    before = decided.probabilities(forest)
    for _ in range(50):  # the first passes, the second does not
        outcome_of(decided, step_of([text()], forest), logits_for([3, 5, 0]))
    half = decided.probabilities(forest)
    for _ in range(200):  # the first does not pass, so the second is not tried
        outcome_of(decided, step_of([text()], forest), logits_for([5, 5, 0]))
    after = decided.probabilities(forest)
    assert before[0] > half[0] > after[0]
    assert half[0] == pytest.approx(0.5, abs=0.06)  # had the untried counted, a third of all had passed
    assert after[0] < 1 / 6  # of all that were tried, one in six passed, and none of the latest


def test_the_drafter_learns_whole_texts_but_not_those_that_failed() -> None:
    drafter = drafting([], [])
    decided = speculation(drafter)
    whole, failed = text(), text()
    for one in (whole, failed):
        one.emit(Continuation([4, 5, END], [True, False], 2), frozenset({END}))
    failed.error = NOT_FINITE
    decided.finish(whole)
    decided.finish(failed)
    assert drafter.learned == [([4, 5, END], [True, False, True])]
    assert 0 < whole.statistics.seconds < 60
