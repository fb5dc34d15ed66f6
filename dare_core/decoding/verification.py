"""Which draft nodes pass, and which path is taken (paper section 4.3). Pure functions of logits and trees.

*Strict*: a node passes when it is the target's argmax after its parent; the text equals greedy decoding.
*Relaxed*: it also passes when it lies in the target's top-k with a probability above p (softmax at temperature 1 over
the whole vocabulary). Some tokens are never relaxed: the end of sequence, and what makes up an answer's structure where
it has one. A drafted one must be the argmax, and where the argmax is one nothing else passes.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dare_core.decoding import kernels
from dare_core.drafts import Forest
from dare_core.storage.machine_code import compiled

Mode = Literal["strict", "relaxed"]


@dataclass(frozen=True)
class Rule:
    """How nodes are verified.

    Attributes:
        mode: strict or relaxed.
        top_k, min_prob: relaxed: a node's rank and probability bounds (paper: k = 2, p = 0.1).
    """

    mode: Mode = "strict"
    top_k: int = 2
    min_prob: float = 0.1


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the target model makes of one step's rows and nodes, on the host.

    Attributes:
        chosen: ``[rows]`` int32: the target's own next token after each row, its argmax.
        finite: ``[rows]`` bool: False where a row's logits hold NaN or positive infinity.
        is_chosen: ``[nodes]`` bool: the node is the target's own token after its parent.
        passes: ``[nodes]`` bool: the node may be accepted if its parent is.
        log_probs: ``[nodes]`` float32: the target's log-probability of each node that passes, in trees where some pass
            by relaxation; else 0, since then no two paths compete.
    """

    chosen: NDArray[np.int32]
    finite: NDArray[np.bool_]
    is_chosen: NDArray[np.bool_]
    passes: NDArray[np.bool_]
    log_probs: NDArray[np.float32]


def token_mask(tokens: Collection[int], vocabulary: int, device: torch.device) -> Tensor:
    """``[vocabulary]`` bool: True for some tokens; :func:`judge` takes those that pass, and let pass, strictly."""
    mask = torch.zeros(vocabulary, dtype=torch.bool)
    mask[sorted(token for token in tokens if token < vocabulary)] = True  # a tokenizer may name more
    return mask.to(device)


def judge(
    logits: Tensor,
    tokens: NDArray[np.int32],
    parent_rows: NDArray[np.int64],
    trees: NDArray[np.int32],
    may_relax: NDArray[np.bool_],
    rule: Rule,
    never_relaxed: Tensor,
) -> Judgement:
    """Judge all nodes of a step at once; the host waits for the device once.

    Args:
        logits: ``[rows, vocabulary]``, one row per sequence's last committed token and per draft node.
        tokens: ``[nodes]`` drafted tokens.
        parent_rows: ``[nodes]`` the row of each node's parent.
        trees: ``[nodes]`` which tree each node belongs to.
        may_relax: ``[nodes]`` False where a sequence is held to strict verification in this step.
        rule: strict or relaxed.
        never_relaxed: see :func:`token_mask`; on the logits' device.
    """
    device = logits.device
    n_rows, n_nodes = len(logits), len(tokens)
    peaks, chosen = _peaks(logits)
    finite = peaks.isfinite()  # NaN counts as the largest value; a masked token's -inf is no fault
    parts = [chosen, finite]
    if n_nodes:
        node_tokens = torch.from_numpy(tokens).to(device, torch.int64)
        parents = torch.from_numpy(parent_rows).to(device)
        is_chosen = node_tokens == chosen[parents]
        parts += [is_chosen]
        if rule.mode == "relaxed":
            may = torch.from_numpy(may_relax).to(device)
            of = torch.from_numpy(trees).to(device, torch.int64)
            passes, log_probs = _relax(
                logits, node_tokens, parents, of, peaks, chosen, is_chosen, may, rule, never_relaxed
            )
            parts += [passes, log_probs.view(torch.int32)]
        else:
            parts += [is_chosen, torch.zeros(n_nodes, dtype=torch.int32, device=device)]
    host = torch.cat([part.to(torch.int32) for part in parts]).cpu().numpy()
    chosen_, finite_ = host[:n_rows], host[n_rows : 2 * n_rows]
    if not n_nodes:
        nothing = np.empty(0, np.bool_)
        return Judgement(chosen_, finite_ != 0, nothing, nothing, np.empty(0, np.float32))
    is_chosen_, passes_, bits = host[2 * n_rows :].reshape(3, n_nodes)
    return Judgement(chosen_, finite_ != 0, is_chosen_ != 0, passes_ != 0, bits.view(np.float32))


def _peaks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest value, and where it stands first."""
    loaded = kernels.load()
    if not loaded or not _is_native(logits):
        peaks, places = logits.max(-1)
        return peaks, places
    rows, width = logits.shape
    peaks, places = logits.new_empty(rows), torch.empty(rows, dtype=torch.int32)
    loaded.peaks(logits.data_ptr(), rows, width, peaks.data_ptr(), places.data_ptr())
    return peaks, places


def _compare(logits: Tensor, rows: Tensor, values: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor]:
    """In each of some rows, how many logits are above a value, and the logarithm of the sum of e to their power."""
    loaded = kernels.load()
    if not loaded or not _is_native(logits):
        chosen = logits[rows].float()
        return (chosen > values[:, None]).sum(-1), chosen.logsumexp(-1)
    n = len(rows)
    above, log_sums = torch.empty(n, dtype=torch.int32), torch.empty(n)
    given = [part.contiguous() for part in (rows, values, peaks)]
    loaded.compare(
        logits.data_ptr(),
        logits.shape[1],
        *(part.data_ptr() for part in given),
        n,
        above.data_ptr(),
        log_sums.data_ptr(),
    )
    return above, log_sums


def _is_native(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.is_contiguous()


def _relax(
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    trees: Tensor,
    peaks: Tensor,
    argmax: Tensor,
    is_argmax: Tensor,
    may: Tensor,
    rule: Rule,
    never_relaxed: Tensor,
) -> tuple[Tensor, Tensor]:
    """``[nodes]``: which nodes pass, and the log-probabilities of those that do, where a tree has relaxed ones."""
    own = logits[parents, tokens].float()
    ratios = (own - peaks[parents].float()).exp()
    may = may & ~is_argmax & ~never_relaxed[tokens] & ~never_relaxed[argmax[parents]]
    # A probability is at most the ratio to the argmax's, so most nodes need no look at their whole row.
    may &= ratios > rule.min_prob
    looked_at = _places(may)
    above, log_sums = _compare(logits, parents[looked_at], own[looked_at], peaks[parents[looked_at]])
    log_probs = torch.zeros_like(ratios)
    log_probs[looked_at] = own[looked_at] - log_sums
    near = torch.zeros_like(may)
    near[looked_at] = above < rule.top_k
    relaxed = may & near & (log_probs.exp() > rule.min_prob)
    # Only where a tree has relaxed nodes can two of its paths be equally long.
    has_relaxed = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    has_relaxed[trees[relaxed]] = True
    compared = _places(is_argmax & has_relaxed[trees])
    _, log_sums = _compare(logits, parents[compared], own[compared], peaks[parents[compared]])
    log_probs[compared] = own[compared] - log_sums
    return is_argmax | relaxed, log_probs


def _places(wanted: Tensor) -> Tensor:
    """Where ``wanted`` is True; on an accelerator all places: a shape that depends on values would cost a wait."""
    return wanted.nonzero()[:, 0] if wanted.device.type == "cpu" else torch.arange(len(wanted), device=wanted.device)


@dataclass(frozen=True, eq=False)
class Paths:
    """The path taken in each of a step's ``s`` trees.

    Attributes:
        lengths: ``[s]`` int64: nodes of each path.
        nodes: ``[s, longest]`` int64: their places in the forest, from the root down; -1 behind a path's end.
        tried: ``[n]`` bool: the target's verdict on the node counted, since all its ancestors passed.
    """

    lengths: NDArray[np.int64]
    nodes: NDArray[np.int64]
    tried: NDArray[np.bool_]


def longest_paths(forest: Forest, judgement: Judgement) -> Paths:
    """The longest accepted path of every tree; of equally long ones that with the highest target probability."""
    sequences, longest = len(forest.sizes), int(forest.depths.max()) if len(forest) else 0
    lengths = np.zeros(sequences, np.int64)
    nodes = np.full((sequences, longest), -1, np.int64)
    tried = np.zeros(len(forest), np.bool_)
    if len(forest):
        _walk(
            forest.offsets, forest.parents, forest.depths, judgement.passes, judgement.log_probs, lengths, nodes, tried
        )
    return Paths(lengths, nodes, tried)


@compiled
def _walk(offsets, parents, depths, passes, log_probs, lengths, nodes, tried):  # type: ignore[no-untyped-def]
    n = len(parents)
    reached = np.zeros(n, np.bool_)
    scores = np.zeros(n, np.float64)
    for i in range(len(lengths)):
        best = -1
        for node in range(offsets[i], offsets[i + 1]):
            parent = parents[node]
            tried[node] = parent < 0 or reached[parent]
            if not tried[node] or not passes[node]:
                continue
            reached[node] = True
            scores[node] = (0.0 if parent < 0 else scores[parent]) + log_probs[node]
            if (
                best < 0
                or depths[node] > depths[best]
                or (depths[node] == depths[best] and scores[node] > scores[best])
            ):
                best = node
        if best >= 0:
            lengths[i] = depths[best]
            while best >= 0:
                nodes[i, depths[best] - 1] = best
                best = parents[best]
