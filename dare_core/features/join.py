"""The point-in-time join: which version of an entity's features an interaction may see.

An interaction at t sees the version with the newest data before t, among those that are valid at t: replaced ones
included, where they were replaced later. The views of the warehouse say the same in SQL (``features.as_of``,
``sql/queries/training_join.sql``).
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dare_core.schemas import TIME, Kind

Rows = np.ndarray[Any, np.dtype[np.int64]]

_NEVER: Final = np.iinfo(np.int64).max


class Versions:
    """The versions of entities' features, to be looked up by entity and moment."""

    def __init__(self, features: pa.Table, kind: Kind) -> None:
        """Order them.

        Args:
            features: of schema :func:`dare_core.features.history.feature_schema`; the columns with ids, times and
                ``request_id`` are read.
            kind: of the entities.
        """
        self._known = pc.unique(features[f"{kind}_id"])
        entity = self.entities(features[f"{kind}_id"])
        begins = microseconds(features["event_timestamp"], 0)
        requests = np.unique(features["request_id"].to_numpy(), return_inverse=True)[1]
        self._order = np.lexsort((-requests, microseconds(features["created_timestamp"], 0), begins, entity))
        self._entity = entity[self._order]
        self._ends = microseconds(features["valid_to"], _NEVER)[self._order]
        # Entity and moment in one number: the moment by its place among all beginnings.
        self._places = np.unique(begins)
        self._key = (self._entity << 32) | np.searchsorted(self._places, begins[self._order])

    def entities(self, ids: pa.ChunkedArray) -> Rows:
        """A number for each entity, by which :meth:`at` knows it; -1 for one that has no version."""
        return _integers(pc.fill_null(pc.index_in(ids, self._known), -1))

    def at(self, entities: Rows, moments: Rows) -> Rows:
        """The row that is seen of each entity at its moment.

        Args:
            entities: ``[n]``, from :meth:`entities`.
            moments: ``[n]``, microseconds since 1970.

        Returns:
            ``[n]``, positions in the features; -1 where none is seen.
        """
        place = np.searchsorted(self._places, moments, side="right") - 1
        found = np.searchsorted(self._key, (entities << 32) | np.maximum(place, 0), side="right") - 1
        found[(entities < 0) | (place < 0)] = -1
        left = np.flatnonzero(found >= 0)
        while len(left):  # those whose version is another entity's, or is over
            other = self._entity[found[left]] != entities[left]
            found[left[other]] = -1
            over = ~other & (self._ends[found[left]] <= moments[left])
            left = left[over]
            found[left] -= 1
            left = left[found[left] >= 0]
        return np.where(found >= 0, self._order[found], -1) if len(self._order) else found


def versions_at(features: pa.Table, kind: Kind, entity_ids: pa.ChunkedArray, moments: pa.ChunkedArray) -> Rows:
    """The feature row that each interaction sees.

    Args:
        features: of schema :func:`dare_core.features.history.feature_schema`.
        kind: of the entities.
        entity_ids: of the interactions.
        moments: of the interactions, in type TIME.

    Returns:
        Positions in ``features``; -1 where an interaction sees none.
    """
    versions = Versions(features, kind)
    return versions.at(versions.entities(entity_ids), microseconds(moments, 0))


def vectors_of(features: pa.Table) -> NDArray[np.float32]:
    """``[versions, width]``; one row of zeros where there is no version."""
    column = features["embedding"].combine_chunks()
    width = column.type.list_size
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)
    return np.array(vectors if len(vectors) else np.zeros((1, width)), np.float32)


def _integers(values: Any) -> Rows:
    return np.asarray(values.to_numpy(), np.int64)


def microseconds(times: pa.ChunkedArray, where_null: int) -> Rows:
    """Since 1970."""
    if pa.types.is_timestamp(times.type) and times.type.unit == "ns":  # which a cast refuses where digits are lost
        times = pc.floor_temporal(times, unit="microsecond")
    return _integers(pc.fill_null(times.cast(TIME).cast(pa.int64()), where_null))
