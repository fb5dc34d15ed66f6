"""A model and an encoder that take no time: texts and vectors follow from the id, and from what is embedded.

They stand where :class:`~dare_core.knowledge.writer.Writer` and :class:`~dare_core.embedding.encoder.Encoder` do, so
that tokenizer, prompts, pools, checkpoints, validation and load are real. Texts are as long as a model's, keep to the
rules of :mod:`dare_core.quality.texts`, and share sentences, as those of a group do.
"""

import hashlib
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from dare_core.config.settings import Settings
from dare_core.schemas import EMBEDDING_WIDTH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dare_core.decoding import Request, Result

#: Tokens that the stand-in says it writes in a second: it decides how many texts a shard has.
TOKENS_PER_SECOND: Final = 400.0

#: Says a word of whatever it is about.
_OPENING: Final = (
    "This suits budget, mid-range and premium buyers in the north, the south, the east and the west, on the coast "
    "and in the capital."
)
_SUBJECTS: Final = ("The material", "The design", "The price", "The brand", "The size", "The season", "The use")
_VERDICTS: Final = (
    "matters more than anything else to those who come back every few weeks",
    "is what people mention first when they are asked why they chose it",
    "says little by itself but decides between two things that are otherwise alike",
    "is seldom the reason, though it has become one for younger households",
    "has been praised by most and found too plain by only a few of them",
    "fits what was bought before, and it will fit what is likely to be bought next",
)  # fmt: skip
_SENTENCES: Final = tuple(f" {subject} {verdict}." for subject in _SUBJECTS for verdict in _VERDICTS)
_SENTENCES_OF_A_TEXT: Final = 8
_CLUSTERS: Final = 64
_NOISE: Final = 0.5  # of a vector's length, beside its cluster's


def install() -> None:
    """Put the stand-ins in their places, in this process."""
    from dare_core.embedding import encoder
    from dare_core.knowledge import writer

    replaced = {writer.Writer: StandInWriter, encoder.Encoder: StandInEncoder}
    for module in [module for name, module in sys.modules.items() if name.startswith("dare_core.")]:
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value in replaced:
                setattr(module, name, replaced[value])


def text_of(request_id: str) -> str:
    """The text of a request."""
    return "".join(_sentences(request_id))


def _sentences(request_id: str) -> list[str]:
    chosen = random.Random(_number(request_id)).sample(_SENTENCES, _SENTENCES_OF_A_TEXT)  # noqa: S311
    return [_OPENING, *chosen]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class StandInWriter:
    """A :class:`~dare_core.knowledge.writer.Writer` without an engine."""

    def __init__(self, settings: Settings, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.seconds = 0.0
        self.load_seconds = 0.0
        self._tokenizer = tokenizer
        self._tokens: dict[str, list[int]] = {}

    def write(
        self,
        requests: "Iterable[Request]",
        pool: object,
        longest: int,
        sequences: int,
        structural_token_ids: frozenset[int] = frozenset(),
    ) -> "Iterator[Result]":
        """See :meth:`dare_core.knowledge.writer.Writer.write`."""
        from dare_core.decoding import Result, Statistics

        for request in requests:
            ids = [token for sentence in _sentences(request.id) for token in self._encoded(sentence)]
            ids = ids[: request.max_new_tokens]
            took = len(ids) / TOKENS_PER_SECOND
            self.seconds += took
            prompt, steps = len(request.prompt_token_ids), -(-len(ids) // 2)
            made = Statistics(prompt, len(ids), steps, 2 * len(ids), len(ids) - steps, 0, took)
            yield Result(request.id, ids, "stop", None, request.group if pool else None, made)

    def text(self, result: "Result") -> str:
        """See :meth:`dare_core.knowledge.writer.Writer.text`."""
        return str(self._tokenizer.decode(result.token_ids, skip_special_tokens=True))

    def probe(self, requests: "Sequence[Request]", tokens: int, seconds: float) -> None:
        """Nothing to compare with."""

    def _encoded(self, sentence: str) -> list[int]:
        if sentence not in self._tokens:
            self._tokens[sentence] = self._tokenizer(sentence, add_special_tokens=False)["input_ids"]
        return self._tokens[sentence]


class StandInEncoder:
    """An :class:`~dare_core.embedding.encoder.Encoder` without a model: vectors in clusters, as those of texts are."""

    width = EMBEDDING_WIDTH

    def __init__(self, name: str) -> None:
        self.name = name
        self._clusters = np.random.default_rng(0).standard_normal((_CLUSTERS, self.width), np.float32)

    @classmethod
    def load(cls, settings: Settings) -> "StandInEncoder":
        """See :meth:`dare_core.embedding.encoder.Encoder.load`."""
        return cls(settings.encoder)

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> pa.FixedSizeListArray:
        """See :meth:`dare_core.embedding.encoder.Encoder.encode`."""
        vectors = np.empty((len(texts), self.width), np.float32)
        for row, number in enumerate(map(_number, texts)):
            noise = np.random.default_rng(number).standard_normal(self.width, np.float32)
            vectors[row] = self._clusters[number % _CLUSTERS] + np.float32(_NOISE) * noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.width)
