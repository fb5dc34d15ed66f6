"""How alike each interaction's item is to what its user had liked before."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dare_core.features.join import Versions, vectors_of
from dare_core.features.likeness import FIGURES, INTERACTIONS, Likeness
from dare_core.features.newest import Earlier

_ROWS_AT_ONCE: Final = 4096


class ItemLikeness:
    """How alike items are to what users liked, and to what they did not like, in the versions of a moment.

    An earlier interaction is compared by the version of its item that the *later* interaction sees, if its vector is
    made of the same as the item's own (column ``form``; files from before there was one hold vectors of answers alone).
    """

    def __init__(self, items: pa.Table) -> None:
        """Keep what is compared.

        Args:
            items: what ``dare features export`` writes as ``item.parquet``; its texts are not needed.
        """
        self._versions = Versions(items, "item")
        self._likeness = Likeness(vectors_of(items))
        forms = items["form"] if "form" in items.column_names else pa.chunked_array([["answer"] * len(items)])
        self._forms = np.asarray(pc.index_in(forms, pc.unique(forms)).to_numpy(), np.int64)

    def before(
        self, user_ids: pa.ChunkedArray, item_ids: pa.ChunkedArray, times: NDArray[np.int64], liked: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Likeness of each interaction's item to what the user met before it: the newest :data:`INTERACTIONS`.

        Of interactions of one moment, that of the greater item id counts as newer; of one item, too, a like.

        Args:
            user_ids: of the interactions, in any order; all that a user ever did is among them.
            item_ids: of the interactions.
            times: ``[n]``, microseconds since 1970.
            liked: ``[n]``, which interactions are likes.

        Returns:
            ``[n, FIGURES]``, see :func:`dare_core.features.likeness.likeness`.
        """
        order = np.lexsort((liked, _ranks(item_ids), times))
        users, times, liked = _ranks(user_ids)[order], times[order], liked[order]
        items = self._versions.entities(item_ids)[order]
        earlier = Earlier.find(users, times)
        found = np.empty((len(order), FIGURES), np.float32)
        for start in range(0, len(order), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            targets = self._versions.at(items[rows], times[rows])
            places = earlier.newest(rows, INTERACTIONS)
            entities = np.where(places >= 0, items[places], -1)
            moments = np.broadcast_to(times[rows, None], places.shape)
            met = self._versions.at(entities.ravel(), moments.ravel()).reshape(places.shape)
            if len(self._forms):
                met[self._forms[met] != self._forms[targets][:, None]] = -1
            found[order[rows]] = self._likeness.of(targets, met, liked[places])
        return found


def _ranks(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """The place of each among the different ones, in the order of their bytes."""
    known = pc.unique(ids)
    return np.asarray(pc.index_in(ids, known.take(pc.sort_indices(known))).to_numpy(), np.int64)
