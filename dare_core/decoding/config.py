"""How an engine decodes."""

from dataclasses import dataclass
from typing import Literal

from dare_core.decoding.verification import Rule
from dare_core.decoding.weights import Storage


@dataclass(frozen=True)
class EngineConfig:
    """How an engine decodes.

    Attributes:
        max_sequences: sequences decoded at once.
        max_length: prompt and new tokens of one sequence at most; what a place in the cache is allocated for.
        rule: strict or relaxed verification.
        eos_token_ids: tokens that end a text; never relaxed.
        structural_token_ids: further tokens that are never relaxed, since an answer's structure is made of them.
        draft_nodes: nodes of one sequence's draft tree at most (paper: 64).
        budget: ``measured`` verifies the nodes that pay on this machine, ``fixed`` all that are drafted.
        prefill_rows: prompt tokens in one step at most; longer prompts take several steps.
        cache_bytes: memory for keys and values; sequences wait while it is full. None: as ``max_sequences`` needs.
        weights: how linear layers' weights are stored on a CPU, if narrower than the model has them. A model that an
            engine has taken over before keeps what that one chose.
        compile: let torch.compile have the layers instead of our kernels, which are for CPUs.
    """

    max_sequences: int
    max_length: int
    rule: Rule
    eos_token_ids: frozenset[int]
    structural_token_ids: frozenset[int] = frozenset()
    draft_nodes: int = 64
    budget: Literal["measured", "fixed"] = "measured"
    prefill_rows: int = 256
    cache_bytes: int | None = None
    weights: Storage = "model"
    compile: bool = False
