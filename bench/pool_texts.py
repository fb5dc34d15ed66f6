"""Texts to measure pools with: real ones where there are some, and as many more as a size needs, by recombination."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dare_core.errors import InputError

#: One in so many texts is held out of every pool, for queries.
_HOLD_OUT: Final = 10
#: Sentences of a recombined text.
_SENTENCES: Final = (5, 12)
#: The share of a recombined text's tokens that is drawn anew, so that there is no end of different texts.
_DRAWN: Final = 0.05
#: Tokens between the ends of sentences, where texts themselves do not say.
_SENTENCE: Final = 20


class Corpus(NamedTuple):
    """Texts for pools and texts for queries.

    Attributes:
        texts: ``[t]`` int32 each, for pools.
        held_out: texts that no pool holds.
        vocabulary: token ids are below it.
        source: where they are from, for the reader.
    """

    texts: list[NDArray[np.int32]]
    held_out: list[NDArray[np.int32]]
    vocabulary: int
    source: str


def read_corpus(knowledge: Path | None) -> Corpus:
    """The texts of a Parquet file with a column ``token_ids``, or made ones without a file.

    Raises:
        InputError: the file has no such column or too few texts.
    """
    if knowledge is None:
        texts, source = _made(), "made: sentences of a random bigram chain"
    else:
        try:
            column = pq.read_table(knowledge, columns=["token_ids"])["token_ids"]
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{knowledge}: no readable Parquet file with a column token_ids: {error}") from None
        texts = [np.array(ids, np.int32) for ids in column.to_pylist() if len(ids) >= _SENTENCE]
        source = knowledge.name
    if len(texts) < 2 * _HOLD_OUT:
        raise InputError(f"{knowledge}: {len(texts)} texts are too few to measure with")
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    cut = len(texts) // _HOLD_OUT
    vocabulary = 1 + max(int(text.max()) for text in texts)
    return Corpus([texts[i] for i in order[cut:]], [texts[i] for i in order[:cut]], vocabulary, source)


def texts_of(corpus: Corpus, tokens: int, seed: int = 0) -> pa.Table:
    """Texts of so many tokens together: the corpus's own first, then recombined ones.

    A recombined text joins sentences of different texts, picked at random; of its tokens, one in twenty is replaced by
    one drawn from all texts.

    Args:
        corpus: what to recombine.
        tokens: how many, up to the last text's end.
        seed: of everything random; with one that is not 0, all texts are recombined.

    Returns:
        Columns ``group`` (one group), ``token_ids``, ``entity_id`` (each text its own).
    """
    random = np.random.default_rng(seed)
    parts, held = [], 0
    for text in corpus.texts if seed == 0 else ():
        if held >= tokens:
            break
        parts.append(text)
        held += len(text)
    everything = np.concatenate(corpus.texts)
    begins, ends = _sentences(corpus.texts)
    while held < tokens:
        count = int(random.integers(*_SENTENCES))
        picked = random.integers(len(begins), size=count)
        text = np.concatenate([everything[begins[k] : ends[k]] for k in picked])
        drawn = np.flatnonzero(random.random(len(text)) < _DRAWN)
        text[drawn] = everything[random.integers(len(everything), size=len(drawn))]
        parts.append(text)
        held += len(text)
    offsets = np.cumsum([0, *map(len, parts)]).astype(np.int32)
    return pa.table(
        {
            "group": pa.array(["bench"] * len(parts), pa.string()),
            "token_ids": pa.ListArray.from_arrays(offsets, np.concatenate(parts)),
            "entity_id": [f"{seed}-{k}" for k in range(len(parts))],
        }
    )


def queries(corpus: Corpus, count: int, length: int, seed: int = 0) -> NDArray[np.int32]:
    """``[count, length]`` int32: what stands before random positions of held-out texts, as an output so far."""
    random = np.random.default_rng(seed)
    long = [text for text in corpus.held_out if len(text) > length]
    if not long:
        raise InputError(f"no held-out text has more than {length} tokens")
    chosen = [long[k] for k in random.integers(len(long), size=count)]
    ends = [int(random.integers(length, len(text))) for text in chosen]
    return np.stack([text[end - length : end] for text, end in zip(chosen, ends, strict=True)])


def _sentences(texts: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where sentences begin and end in all texts joined: behind the token that most often stands at such distances."""
    everything = np.concatenate(texts)
    edges = np.cumsum([0, *map(len, texts)])
    frequent = np.bincount(everything)
    share = frequent / len(everything)
    stop = int(np.argmin(np.abs(share - 1 / _SENTENCE)))  # in English texts of most tokenizers the full stop
    inside = np.flatnonzero(everything == stop) + 1
    cuts = np.unique(np.concatenate([edges, inside]))
    return cuts[:-1], cuts[1:]


def _made() -> list[NDArray[np.int32]]:
    random = np.random.default_rng(0)
    words = 4000
    following = random.zipf(1.3, size=(words, 8)) % words
    texts = []
    for _ in range(1500):
        word, text = int(random.integers(words)), []
        for _ in range(int(random.integers(100, 200))):
            word = int(following[word, random.integers(8)]) if random.random() > 1 / _SENTENCE else 30
            text.append(word)
        texts.append(np.array(text, np.int32))
    return texts
