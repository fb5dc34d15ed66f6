"""Arctic Inference's suffix decoding cache as a peer: a program for its own environment, asked in JSON lines.

``VENV/bin/python -P arctic_peer.py`` (see ``scripts/install_arctic.sh``) answers each line of standard input with one
of standard output. The first says what it shall keep; each other one asks for draft trees::

    {"texts": [[1, 2, 3], [4, 5]]}
    {"seconds": 0.1}
    {"contexts": [[7, 1, 2], [9]], "max_nodes": 64}
    {"trees": [[[3], [-1], [1.0]], [[], [], []]], "seconds": [5e-06, 2e-06]}

A tree is tokens, parents (-1 for the root's children) and probabilities of paths. It ends with its input.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

#: Longest suffix and draft together: what vLLM sets.
_DEPTH: Final = 24
#: The request that drafts. Nothing is added to it, so it drafts from earlier responses alone, as our pool does here.
_ASKING: Final = "asking"


def fill(texts: Sequence[Sequence[int]]) -> tuple[Any, float]:
    """A cache that has seen ``texts`` as responses to earlier requests, and the seconds that took."""
    from arctic_inference.suffix_decoding import SuffixDecodingCache  # type: ignore[import-not-found]

    responses = [np.array(text, np.int32) for text in texts]
    nothing = np.empty(0, np.int32)
    began = time.perf_counter()
    cache = SuffixDecodingCache(max_tree_depth=_DEPTH)
    for number, response in enumerate(responses):
        cache.start_request(number, nothing)
        cache.add_active_response(number, response)
        cache.stop_request(number)
    seconds = time.perf_counter() - began
    cache.start_request(_ASKING, nothing)
    return cache, seconds


def draft(cache: Any, contexts: Sequence[Sequence[int]], max_nodes: int) -> dict[str, Any]:
    """Trees of ``max_nodes`` nodes, however short the suffix that was found, and the seconds of each call."""
    settings = {"max_spec_offset": max_nodes, "min_token_prob": 0.0, "use_tree_spec": True}
    trees, taken = [], []
    for context in contexts:
        tokens = np.array(context[-_DEPTH:], np.int32)
        began = time.perf_counter()
        found = cache.speculate(_ASKING, tokens, max_nodes, **settings)
        taken.append(time.perf_counter() - began)
        trees.append((found.token_ids, found.parents, found.probs))
    return {"trees": trees, "seconds": taken}


def main() -> None:
    """Fill the cache with the first line's texts, then draft until standard input ends."""
    cache, seconds = fill(**json.loads(sys.stdin.readline()))
    print(json.dumps({"seconds": seconds}), flush=True)
    for line in sys.stdin:
        print(json.dumps(draft(cache, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
