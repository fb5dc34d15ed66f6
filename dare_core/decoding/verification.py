"""Which draft nodes pass (paper section 4.3). Pure functions of logits and trees.

*Strict*: a node passes when it is the target's argmax after its parent; the text equals greedy decoding.
*Relaxed*: it also passes when it lies in the target's top-k with a probability above p (softmax at temperature 1 over
the whole vocabulary). A drafted end-of-sequence must be the argmax, and where the argmax is end-of-sequence nothing
else passes.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dare_core.drafts import DraftTree


@dataclass(frozen=True)
class Rule:
    """How nodes are verified. ``top_k`` and ``min_prob`` (paper: k = 2, p = 0.1) matter in relaxed mode alone."""

    mode: Literal["strict", "relaxed"] = "strict"
    top_k: int = 2
    min_prob: float = 0.1


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the target model makes of one step's rows and nodes, on the host.

    Attributes:
        argmax: ``[rows]`` the most probable next token after each row.
        finite: ``[rows]`` False where a row's logits hold NaN or positive infinity.
        is_argmax: ``[nodes]`` the node is the argmax after its parent.
        passes: ``[nodes]`` the node may be accepted if its parent is.
        log_probs: ``[nodes]`` the target's log-probability of the node after its parent.
    """

    argmax: NDArray[np.int64]
    finite: NDArray[np.bool_]
    is_argmax: NDArray[np.bool_]
    passes: NDArray[np.bool_]
    log_probs: NDArray[np.float32]


def judge(
    logits: Tensor,
    tokens: NDArray[np.int64],
    parent_rows: NDArray[np.int64],
    may_relax: NDArray[np.bool_],
    rule: Rule,
    eos_token_ids: Collection[int],
) -> Judgement:
    """Judge all nodes of a step at once.

    Args:
        logits: ``[rows, vocabulary]``, one row per sequence's last committed token and per draft node.
        tokens: ``[nodes]`` drafted tokens.
        parent_rows: ``[nodes]`` the row of each node's parent.
        may_relax: ``[nodes]`` False where a sequence is held to strict verification in this step.
        rule: strict or relaxed.
        eos_token_ids: tokens that end a text.
    """
    argmax = logits.argmax(-1)
    normaliser = logits.float().logsumexp(-1)
    finite = (
        normaliser.isfinite()
    )  # any NaN or positive infinity in a row shows here; a masked token's -inf is no fault
    if not len(tokens):
        nothing = np.empty(0, np.bool_)
        return Judgement(argmax.cpu().numpy(), finite.cpu().numpy(), nothing, nothing, np.empty(0, np.float32))
    device = logits.device
    node_tokens = torch.from_numpy(tokens).to(device)
    parents = torch.from_numpy(parent_rows).to(device)
    log_probs = logits[parents, node_tokens].float() - normaliser[parents]
    is_argmax = node_tokens == argmax[parents]
    passes = is_argmax
    if rule.mode == "relaxed":
        nearest = logits.topk(min(rule.top_k, logits.shape[-1]), dim=-1).indices
        near = (nearest[parents] == node_tokens[:, None]).any(-1) & (log_probs.exp() > rule.min_prob)
        ends = torch.tensor(sorted(eos_token_ids), dtype=torch.int64, device=device)
        involves_end = torch.isin(node_tokens, ends) | torch.isin(argmax[parents], ends)
        passes = is_argmax | (near & ~involves_end & torch.from_numpy(may_relax).to(device))
    return Judgement(
        argmax=argmax.cpu().numpy(),
        finite=finite.cpu().numpy(),
        is_argmax=is_argmax.cpu().numpy(),
        passes=passes.cpu().numpy(),
        log_probs=log_probs.cpu().numpy(),
    )


def longest_path(tree: DraftTree, passes: NDArray[np.bool_], log_probs: NDArray[np.float32]) -> list[int]:
    """The nodes of the longest accepted path from the root down, ties broken by the target's log-probability.

    Args:
        tree: ``n`` nodes.
        passes: ``[n]`` each node's own verdict.
        log_probs: ``[n]`` the target's log-probability of each node after its parent.

    Returns:
        Node indices in order; empty when no child of the root passes.
    """
    reached = ~(tree.ancestors & ~passes).any(axis=1)
    if not reached.any():
        return []
    path_log_probs = np.where(tree.ancestors, log_probs, 0).sum(axis=1)
    candidates = np.flatnonzero(reached)
    best = max(candidates, key=lambda node: (tree.depths[node], path_log_probs[node]))
    return [int(node) for node in np.flatnonzero(tree.ancestors[best])]
