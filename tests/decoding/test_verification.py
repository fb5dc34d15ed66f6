import math
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dare_core.decoding.verification import Rule, judge, longest_paths, token_mask
from dare_core.drafts import Forest
from tests.decoding.scripted import tree

EOS, BRACE = 9, 8
NEVER_RELAXED = torch.arange(10) >= BRACE
ONE_TREE = np.zeros(2, np.int32)


@st.composite
def trees(draw: st.DrawFn) -> Forest:
    n = draw(st.integers(0, 12))
    parents = [draw(st.integers(-1, node - 1)) for node in range(n)]
    tokens = [draw(st.integers(0, 9)) for _ in range(n)]
    return tree(tokens, parents)


def logits_of(draw: st.DrawFn, rows: int) -> torch.Tensor:
    values = draw(st.lists(st.floats(-4, 4, width=32), min_size=rows * 10, max_size=rows * 10))
    return torch.tensor(values).reshape(rows, 10)


def obvious(row: torch.Tensor, token: int, rule: Rule, may_relax: bool) -> bool:
    """One node's verdict, the slow way, straight from DESIGN.md decision 9."""
    best = int(row.argmax())
    if token == best:
        return True
    if rule.mode == "strict" or not may_relax or NEVER_RELAXED[[token, best]].any():
        return False
    probabilities = row.double().softmax(-1)
    rank = int((row > row[token]).sum())
    return rank < rule.top_k and float(probabilities[token]) > rule.min_prob


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_nodes_and_paths_agree_with_an_obvious_verifier(data: st.DataObject) -> None:
    drafted = data.draw(trees())
    logits = logits_of(data.draw, len(drafted) + 1)
    rule = data.draw(st.sampled_from([Rule("strict"), Rule("relaxed", 2, 0.1), Rule("relaxed", 4, 0.02)]))
    may_relax = data.draw(st.booleans())
    n = len(drafted)
    judged = judge(
        logits,
        drafted.tokens,
        drafted.parents.astype(np.int64) + 1,
        drafted.trees,
        np.full(n, may_relax),
        rule,
        NEVER_RELAXED,
    )
    rows = [logits[parent + 1] for parent in drafted.parents]
    expected = [obvious(row, int(token), rule, may_relax) for row, token in zip(rows, drafted.tokens, strict=True)]
    assert judged.passes.tolist() == expected
    assert judged.chosen.tolist() == logits.argmax(-1).tolist()
    assert judged.is_chosen.tolist() == [
        int(row.argmax()) == token for row, token in zip(rows, drafted.tokens, strict=True)
    ]

    # Accepted nodes: depth, and log-probability of the path.
    accepted: dict[int, tuple[int, float]] = {-1: (0, 0.0)}
    for node, parent in enumerate(drafted.parents.tolist()):
        if expected[node] and parent in accepted:
            depth, score = accepted[parent]
            log_prob = float(rows[node].double().log_softmax(-1)[drafted.tokens[node]])
            accepted[node] = (depth + 1, score + log_prob)
    paths = longest_paths(drafted, judged)
    path = paths.nodes[0, : paths.lengths[0]].tolist()
    deepest = max(depth for depth, _ in accepted.values())
    assert len(path) == deepest
    assert paths.tried.tolist() == [parent in accepted for parent in drafted.parents.tolist()]
    if path:
        assert all(drafted.parents[b] == a for a, b in pairwise(path))
        assert drafted.parents[path[0]] == -1
        if rule.mode == "relaxed":
            best = max(score for depth, score in accepted.values() if depth == deepest)
            assert math.isclose(accepted[path[-1]][1], best, abs_tol=1e-4)


def test_a_drafted_end_must_be_the_argmax() -> None:
    logits = torch.tensor([[0.0, 1.0, *[-9.0] * 7, 0.9]])
    judged = judge(
        logits,
        np.array([EOS], np.int32),
        np.array([0]),
        ONE_TREE[:1],
        np.array([True]),
        Rule("relaxed", 3, 0.01),
        NEVER_RELAXED,
    )
    assert not judged.passes[0]


def test_nothing_passes_beside_an_end_that_is_the_argmax() -> None:
    logits = torch.tensor([[0.0, 0.9, *[-9.0] * 7, 1.0]])
    judged = judge(
        logits,
        np.array([1, EOS], np.int32),
        np.array([0, 0]),
        ONE_TREE,
        np.array([True, True]),
        Rule("relaxed", 3, 0.01),
        NEVER_RELAXED,
    )
    assert judged.passes.tolist() == [False, True]


def test_rows_that_are_not_finite_are_found_and_masked_tokens_are_not() -> None:
    logits = torch.zeros(4, 10)
    logits[1, 3] = math.nan
    logits[2, 3] = math.inf
    logits[3, 3] = -math.inf
    judged = judge(
        logits, np.empty(0, np.int32), np.empty(0, np.int64), ONE_TREE[:0], np.empty(0, np.bool_), Rule(), NEVER_RELAXED
    )
    assert judged.finite.tolist() == [True, False, False, True]


def test_tokens_that_the_model_has_no_logits_for_are_left_out_of_a_mask() -> None:
    assert token_mask({1, 3, 9}, 4, torch.device("cpu")).tolist() == [False, True, False, True]
