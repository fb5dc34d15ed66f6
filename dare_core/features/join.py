"""The point-in-time join: which version of an entity's features an interaction may see.

An interaction at t sees the version with the newest data before t, among those that are valid at t: replaced ones
included, where they were replaced later. The views of the warehouse say the same in SQL (``features.as_of``,
``sql/queries/training_join.sql``).
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dare_core.schemas import TIME, Kind

Rows = np.ndarray[Any, np.dtype[np.int64]]

_NEVER: Final = np.iinfo(np.int64).max


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
    known = pc.unique(features[f"{kind}_id"])
    entity = _integers(pc.index_in(features[f"{kind}_id"], known))
    begins = _microseconds(features["event_timestamp"], 0)
    ends = _microseconds(features["valid_to"], _NEVER)
    requests = np.unique(features["request_id"].to_numpy(), return_inverse=True)[1]
    order = np.lexsort((-requests, _microseconds(features["created_timestamp"], 0), begins, entity))
    # Entity and moment in one number: the moment by its place among all beginnings.
    places = np.unique(begins)
    key = (entity[order] << 32) | np.searchsorted(places, begins[order])
    asked = _integers(pc.fill_null(pc.index_in(entity_ids, known), -1))
    at = _microseconds(moments, 0)
    place = np.searchsorted(places, at, side="right") - 1
    found = np.searchsorted(key, (asked << 32) | np.maximum(place, 0), side="right") - 1
    found[(asked < 0) | (place < 0)] = -1
    while True:
        of_entity = (found >= 0) & (entity[order[found]] == asked) if len(order) else np.zeros(len(found), bool)
        found[~of_entity] = -1
        over = of_entity & (ends[order[found]] <= at) if len(order) else of_entity
        if not over.any():
            break
        found[over] -= 1
    return np.where(found >= 0, order[found], -1) if len(order) else found


def _integers(values: Any) -> Rows:
    return np.asarray(values.to_numpy(), np.int64)


def _microseconds(times: pa.ChunkedArray, where_null: int) -> Rows:
    if pa.types.is_timestamp(times.type) and times.type.unit == "ns":  # which a cast refuses where digits are lost
        times = pc.floor_temporal(times, unit="microsecond")
    return _integers(pc.fill_null(times.cast(TIME).cast(pa.int64()), where_null))
