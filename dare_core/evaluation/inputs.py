"""What click models read: examples as arrays, with numbers that every arm has and numbers of an arm's vectors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.evaluation.examples import ITEM, USER, Examples, Sight, Split, known_codes
from dare_core.features.likeness import likeness
from dare_core.features.newest import newest_before
from dare_core.schemas import Kind

#: Vectors of an arm's texts, ``[m, w]`` float32 by kind, in the order of their places.
Vectors = Mapping[Kind, NDArray[np.float32]]

_Floats = NDArray[np.float32]

#: Dimensions that an arm's vectors are reduced to.
_WIDTH: Final = 64
#: Interactions, half of them likes, that a user is taken to have had before the first.
_PRIOR: Final = 5
#: Of a user's interactions, the newest whose share of likes is a number of its own.
_RECENT: Final = 10
#: What spreads less in training is the same everywhere there: it is not scaled, lest it be huge in tests.
_LEAST_SPREAD: Final = 1e-6


@dataclass(frozen=True)
class Inputs:
    """One arm's examples of one split; arrays as :class:`dare_core.evaluation.models.Batch` has them, of all examples.

    Attributes:
        codes: that fields have, all together.
        vectors: ``[m, w]`` of the texts by kind, reduced.
    """

    split: Split
    codes: int
    vectors: Vectors
    fields: NDArray[np.int64]
    history: NDArray[np.int64]
    item_texts: NDArray[np.int64]
    user_texts: NDArray[np.int64]
    history_texts: NDArray[np.int64]
    numbers: _Floats
    labels: _Floats

    def without_knowledge(self, numbers: int) -> "Inputs":
        """The same without any text, and without the numbers after so many."""
        blank = {name: np.zeros_like(getattr(self, name)) for name in ("item_texts", "user_texts", "history_texts")}
        kept = self.numbers.copy()
        kept[:, numbers:] = 0
        return replace(self, **blank, numbers=kept)


def make_inputs(
    examples: Examples, split: Split, of_all: _Floats, sight: Sight, vectors: Vectors, of_vectors: _Floats
) -> Inputs:
    """One arm's inputs of one split.

    Args:
        examples: of all interactions.
        split: which of them train: numbers are scaled, and vectors reduced, by what these see.
        of_all: see :func:`numbers_of_all`.
        sight: which texts are seen.
        vectors: of the texts.
        of_vectors: see :func:`numbers_of_vectors`.
    """
    fields, item_codes, codes = known_codes(examples.fields, examples.fields[split.train])
    seen: dict[Kind, NDArray[np.int64]] = {"item": sight.item[split.train], "user": sight.user[split.train]}
    numbers = np.column_stack([of_all, of_vectors])
    trained = numbers[split.train]
    spread = trained.std(0)
    return Inputs(
        split,
        codes,
        {kind: _reduced(of_kind, np.unique(seen[kind])) for kind, of_kind in vectors.items()},
        fields,
        np.where(examples.likes >= 0, item_codes[examples.fields[examples.likes, ITEM]], 0),
        sight.item,
        sight.user,
        sight.likes,
        (numbers - trained.mean(0)) / np.where(spread > _LEAST_SPREAD, spread, np.float32(1)),
        examples.labels,
    )


def numbers_of_all(examples: Examples) -> _Floats:
    """``[n, 4]``, what every arm knows of the user before the example: how many interactions, how many likes, which
    share of them, and which of the newest."""
    users, times, liked = examples.fields[:, USER], examples.times, examples.labels > 0
    met, likes = _count_before(users, times, np.ones_like(liked)), _count_before(users, times, liked)
    recent = newest_before(users, times, _RECENT)
    there = recent >= 0
    share = ((liked[recent] & there).sum(1) + _PRIOR / 4) / (there.sum(1) + _PRIOR / 2)
    return np.column_stack([np.log1p(met), np.log1p(likes), (likes + _PRIOR / 2) / (met + _PRIOR), share]).astype("f4")


def numbers_of_vectors(examples: Examples, sight: Sight, vectors: Vectors) -> _Floats:
    """``[n, q]``, what an arm's vectors tell of an example: likeness of its item to what the user liked, leaning, the
    histogram in shares, the cosine of the texts of user and item, and whether the user has one."""
    liked = (examples.labels > 0)[examples.met]
    found = likeness(vectors["item"], sight.item - 1, sight.met - 1, liked)
    histogram = found[:, 4:] / np.maximum(found[:, :1], 1)
    both = (sight.item > 0) & (sight.user > 0)
    cosine = np.zeros(len(examples), np.float32)
    pairs = vectors["item"][sight.item[both] - 1], vectors["user"][sight.user[both] - 1]
    cosine[both] = np.einsum("nw,nw->n", *pairs)
    return np.column_stack([found[:, 1:4], histogram, cosine, both]).astype(np.float32)


def _count_before(users: NDArray[np.int64], times: NDArray[np.int64], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``[n]``, how many of the user's counted examples lie strictly before each."""
    moments, moment = np.unique(times, return_inverse=True)
    key = users * len(moments) + moment
    keys = np.sort(key[counted])
    return np.asarray(np.searchsorted(keys, key) - np.searchsorted(keys, users * len(moments)), np.int64)


def _reduced(vectors: _Floats, seen: NDArray[np.int64]) -> _Floats:
    """``[m, _WIDTH]`` by the principal components of those that training sees (places from 1), in a mean square of 1.

    Texts of one prompt have most of their vectors in common. Columns that the few texts of training do not span are 0.
    """
    found = np.zeros((len(vectors), _WIDTH), np.float32)
    known = vectors[seen[seen > 0] - 1]
    if len(known):
        centre = known.mean(0)
        axes = np.linalg.svd(known - centre, full_matrices=False)[2][:_WIDTH].T
        size = float(np.sqrt(np.square((known - centre) @ axes).mean()))
        if size > _LEAST_SPREAD:
            found[:, : axes.shape[1]] = (vectors - centre) @ axes / size
    return found
