"""What a user had liked before each interaction, and how alike its item is to that."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dare_core.features.join import Versions, vectors_of
from dare_core.features.likeness import LIKES, TIERS, likeness

_ROWS_AT_ONCE: Final = 4096


def newest_likes(
    users: NDArray[np.int64], times: NDArray[np.int64], liked: NDArray[np.bool_], most: int
) -> NDArray[np.int64]:
    """The newest likes of each interaction's user, of those strictly before it.

    Strictly, since nobody knows what came first within one moment, and no interaction may show itself. Of likes of one
    moment, the one that is later in the arrays counts as newer.

    Args:
        users: ``[n]``, a number for each user.
        times: ``[n]``, in any unit.
        liked: ``[n]``, which interactions are likes.
        most: likes of an interaction at most.

    Returns:
        ``[n, most]``, positions of interactions, the newest first; -1 where there are fewer.
    """
    return _Likes.find(users, times, liked).newest(slice(None), most)


@dataclass(frozen=True)
class _Likes:
    """Likes in the order of user and time, and which of them each interaction sees.

    Attributes:
        order: ``[likes]``, positions of interactions.
        first: ``[n]``, place in ``order`` of the user's oldest like.
        end: ``[n]``, place after the newest one before the interaction.
    """

    order: NDArray[np.int64]
    first: NDArray[np.int64]
    end: NDArray[np.int64]

    @classmethod
    def find(cls, users: NDArray[np.int64], times: NDArray[np.int64], liked: NDArray[np.bool_]) -> "_Likes":
        known, moment = np.unique(times, return_inverse=True)
        begin = np.unique(users, return_inverse=True)[1] * len(known)  # user and moment in one number
        places = np.flatnonzero(liked)
        order = places[np.argsort((begin + moment)[places], kind="stable")]
        keys = (begin + moment)[order]
        return cls(order, np.searchsorted(keys, begin), np.searchsorted(keys, begin + moment))

    def newest(self, rows: slice, most: int) -> NDArray[np.int64]:
        """``[rows, most]``; see :func:`newest_likes`."""
        found = self.end[rows, None] - 1 - np.arange(most)
        seen = found >= self.first[rows, None]
        return np.where(seen, self.order[found * seen], -1) if len(self.order) else np.full_like(found, -1)


class ItemLikeness:
    """How alike items are to what users liked, in the versions of a moment.

    A like is compared by the version of its item that the *later* interaction sees, if its vector is made of the same
    as the item's own (column ``form``; files from before there was one hold vectors of answers alone).
    """

    def __init__(self, items: pa.Table) -> None:
        """Keep what is compared.

        Args:
            items: what ``dare features export`` writes as ``item.parquet``; its texts are not needed.
        """
        self._versions = Versions(items, "item")
        self._vectors = vectors_of(items)
        forms = items["form"] if "form" in items.column_names else pa.chunked_array([["answer"] * len(items)])
        self._forms = np.asarray(pc.index_in(forms, pc.unique(forms)).to_numpy(), np.int64)

    def before(
        self, user_ids: pa.ChunkedArray, item_ids: pa.ChunkedArray, times: NDArray[np.int64], liked: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Likeness of each interaction's item to the user's newest likes before it.

        Of likes of one moment, that of the greater item id counts as newer.

        Args:
            user_ids: of the interactions, in any order; all that a user ever did is among them.
            item_ids: of the interactions.
            times: ``[n]``, microseconds since 1970.
            liked: ``[n]``, which interactions are likes.

        Returns:
            ``[n, 3 + TIERS]``, see :func:`dare_core.features.likeness.likeness`.
        """
        order = np.lexsort((_ranks(item_ids), times))
        users, times = _ranks(user_ids)[order], times[order]
        items = self._versions.entities(item_ids)[order]
        likes = _Likes.find(users, times, liked[order])
        found = np.empty((len(order), 3 + TIERS), np.float32)
        for start in range(0, len(order), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            targets = self._versions.at(items[rows], times[rows])
            places = likes.newest(rows, LIKES)
            entities = np.where(places >= 0, items[places], -1)
            moments = np.broadcast_to(times[rows, None], places.shape)
            compared = self._versions.at(entities.ravel(), moments.ravel()).reshape(places.shape)
            if len(self._forms):
                compared[self._forms[compared] != self._forms[targets][:, None]] = -1
            found[order[rows]] = likeness(self._vectors, targets, compared)
        return found


def _ranks(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """The place of each among the different ones, in the order of their bytes."""
    known = pc.unique(ids)
    return np.asarray(pc.index_in(ids, known.take(pc.sort_indices(known))).to_numpy(), np.int64)
