import math
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dare_core.decoding.verification import Rule, judge, longest_path
from dare_core.drafts import DraftTree

EOS = 9


@st.composite
def trees(draw: st.DrawFn) -> DraftTree:
    n = draw(st.integers(0, 12))
    parents = [draw(st.integers(-1, node - 1)) for node in range(n)]
    tokens = [draw(st.integers(0, 9)) for _ in range(n)]
    return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32), np.ones(n, np.float32))


def logits_of(draw: st.DrawFn, rows: int) -> torch.Tensor:
    values = draw(st.lists(st.floats(-4, 4, width=32), min_size=rows * 10, max_size=rows * 10))
    return torch.tensor(values).reshape(rows, 10)


def obvious(row: torch.Tensor, token: int, rule: Rule, may_relax: bool) -> bool:
    """One node's verdict, the slow way, straight from DESIGN.md decision 9."""
    best = int(row.argmax())
    if token == best:
        return True
    if rule.mode == "strict" or not may_relax or EOS in (token, best):
        return False
    probabilities = row.double().softmax(-1)
    return token in row.topk(rule.top_k).indices and float(probabilities[token]) > rule.min_prob


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_nodes_and_paths_agree_with_an_obvious_verifier(data: st.DataObject) -> None:
    tree = data.draw(trees())
    logits = logits_of(data.draw, len(tree) + 1)
    rule = data.draw(st.sampled_from([Rule("strict"), Rule("relaxed", 2, 0.1), Rule("relaxed", 4, 0.02)]))
    may_relax = data.draw(st.booleans())
    judged = judge(
        logits,
        tree.tokens.astype(np.int64),
        tree.parents.astype(np.int64) + 1,
        np.full(len(tree), may_relax),
        rule,
        {EOS},
    )
    expected = [
        obvious(logits[parent + 1], int(token), rule, may_relax)
        for token, parent in zip(tree.tokens, tree.parents, strict=True)
    ]
    assert judged.passes.tolist() == expected
    assert judged.argmax.tolist() == logits.argmax(-1).tolist()

    path = longest_path(tree, judged.passes, judged.log_probs)
    accepted: dict[int, tuple[int, float]] = {-1: (0, 0.0)}
    for node, parent in enumerate(tree.parents.tolist()):
        if expected[node] and parent in accepted:
            depth, score = accepted[parent]
            accepted[node] = (depth + 1, score + float(judged.log_probs[node]))
    deepest = max(depth for depth, _ in accepted.values())
    assert len(path) == deepest
    if path:
        assert all(tree.parents[b] == a for a, b in pairwise(path))
        assert tree.parents[path[0]] == -1
        best = max(score for depth, score in accepted.values() if depth == deepest)
        assert math.isclose(accepted[path[-1]][1], best, abs_tol=1e-4)


def test_a_drafted_end_must_be_the_argmax() -> None:
    logits = torch.tensor([[0.0, 1.0, *[-9.0] * 7, 0.9]])
    judged = judge(logits, np.array([EOS]), np.array([0]), np.array([True]), Rule("relaxed", 3, 0.01), {EOS})
    assert not judged.passes[0]


def test_nothing_passes_beside_an_end_that_is_the_argmax() -> None:
    logits = torch.tensor([[0.0, 0.9, *[-9.0] * 7, 1.0]])
    judged = judge(
        logits, np.array([1, EOS]), np.array([0, 0]), np.array([True, True]), Rule("relaxed", 3, 0.01), {EOS}
    )
    assert judged.passes.tolist() == [False, True]


def test_rows_that_are_not_finite_are_found_and_masked_tokens_are_not() -> None:
    logits = torch.zeros(4, 10)
    logits[1, 3] = math.nan
    logits[2, 3] = math.inf
    logits[3, 3] = -math.inf
    judged = judge(logits, np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_), Rule(), {EOS})
    assert judged.finite.tolist() == [True, False, False, True]
