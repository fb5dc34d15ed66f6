"""What a user had liked before each interaction."""

import numpy as np
from numpy.typing import NDArray


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
    places = np.flatnonzero(liked)
    if not len(places):
        return np.full((len(users), most), -1, np.int64)
    user = np.unique(users, return_inverse=True)[1]
    known, moment = np.unique(times, return_inverse=True)
    begin = user * len(known)  # user and moment in one number
    order = places[np.argsort((begin + moment)[places], kind="stable")]
    keys = (begin + moment)[order]
    first = np.searchsorted(keys, begin)
    found = np.searchsorted(keys, begin + moment)[:, None] - 1 - np.arange(most)
    return np.where(found >= first[:, None], order[np.maximum(found, 0)], -1)
