"""What engines are asked for, and what they answer: requests, results, and their statistics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: Told a request's id and the tokens that a step emitted for it.
OnTokens = Callable[[str, Sequence[int]], None]


@dataclass(frozen=True)
class Request:
    """A text to write: ``prompt_token_ids`` in, at most ``max_new_tokens`` out, drafting from the pool of ``group``."""

    id: str
    group: str
    prompt_token_ids: Sequence[int]
    max_new_tokens: int

    def __post_init__(self) -> None:
        if isinstance(self.prompt_token_ids, np.ndarray):  # two of which cannot be compared as a whole
            object.__setattr__(self, "prompt_token_ids", self.prompt_token_ids.tolist())

    def problem(self, vocabulary: int, max_length: int, reason: str = "") -> str | None:
        """Why this request cannot be served; None if it can.

        Args:
            vocabulary: token ids are below it.
            max_length: of a prompt and its text, in tokens.
            reason: why it is that, if there is more to say.
        """
        prompt = np.asarray(self.prompt_token_ids, dtype=np.int64)
        if not len(prompt):
            return "the prompt has no tokens"
        if self.max_new_tokens < 1:
            return f"max_new_tokens is {self.max_new_tokens}; at least 1 is needed"
        if prompt.min() < 0 or prompt.max() >= vocabulary:
            return f"the prompt holds a token id outside 0..{vocabulary - 1}"
        if len(prompt) + self.max_new_tokens > max_length:
            return (
                f"{len(prompt)} prompt tokens and {self.max_new_tokens} new ones exceed "
                f"the engine's length of {max_length}{reason}"
            )
        return None


@dataclass
class Statistics:
    """One text's decoding; the fields of ``schemas.STATISTICS``."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    relaxed: int = 0
    seconds: float = 0.0


@dataclass
class RunStatistics:
    """What all steps of an engine made so far, and where their time went, in seconds.

    Attributes:
        steps: forward passes.
        decode_steps: the sum over sequences of the steps that emitted for them; plain decoding emits one token in each.
        rows: tokens and draft nodes that went through the model.
        prompt_tokens, shared_tokens: tokens of prompts, and how many of them another sequence had in the cache already.
    """

    steps: int = 0
    decode_steps: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    new_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    relaxed: int = 0
    draft_seconds: float = 0.0
    forward_seconds: float = 0.0
    verify_seconds: float = 0.0
    commit_seconds: float = 0.0

    def add(self, text: Statistics) -> None:
        """Count a text that is finished, or failed."""
        self.decode_steps += text.steps
        self.prompt_tokens += text.prompt_tokens
        self.new_tokens += text.new_tokens
        self.drafted += text.drafted
        self.accepted += text.accepted
        self.relaxed += text.relaxed


@dataclass(frozen=True)
class Result:
    """A written text, or why there is none.

    Attributes:
        token_ids: the new tokens, with the end-of-sequence token if one was written.
        finish_reason: ``stop`` (end of sequence) or ``length``; None when the request failed.
        error: why it failed; None when it did not.
        draft_group: the pool group it drafted from.
    """

    id: str
    token_ids: list[int]
    finish_reason: str | None
    error: str | None
    draft_group: str | None
    statistics: Statistics

    @classmethod
    def refused(cls, request: Request, problem: str) -> "Result":
        """Of a request that cannot be served."""
        return cls(request.id, [], None, problem, None, Statistics())
