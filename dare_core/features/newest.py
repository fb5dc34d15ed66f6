"""What a user had done before each interaction."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def newest_before(
    users: NDArray[np.int64], times: NDArray[np.int64], most: int, among: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The newest interactions of each interaction's user, of those strictly before it.

    Strictly, since nobody knows what came first within one moment, and no interaction may show itself. Of interactions
    of one moment, the one that is later in the arrays counts as newer.

    Args:
        users: ``[n]``, a number for each user.
        times: ``[n]``, in any unit.
        most: of an interaction at most.
        among: ``[n]``, which interactions may be found, the likes, say; None: all.

    Returns:
        ``[n, most]``, positions of interactions, the newest first; -1 where there are fewer.
    """
    return Earlier.find(users, times, among).newest(slice(None), most)


@dataclass(frozen=True)
class Earlier:
    """Interactions in the order of user and time, and which of them each interaction sees.

    Attributes:
        order: ``[found]``, positions of those that may be found.
        first: ``[n]``, place in ``order`` of the user's oldest.
        end: ``[n]``, place after the newest one before the interaction.
    """

    order: NDArray[np.int64]
    first: NDArray[np.int64]
    end: NDArray[np.int64]

    @classmethod
    def find(
        cls, users: NDArray[np.int64], times: NDArray[np.int64], among: NDArray[np.bool_] | None = None
    ) -> "Earlier":
        """See :func:`newest_before`."""
        known, moment = np.unique(times, return_inverse=True)
        begin = np.unique(users, return_inverse=True)[1] * len(known)  # user and moment in one number
        places = np.arange(len(users)) if among is None else np.flatnonzero(among)
        order = places[np.argsort((begin + moment)[places], kind="stable")]
        keys = (begin + moment)[order]
        return cls(order, np.searchsorted(keys, begin), np.searchsorted(keys, begin + moment))

    def newest(self, rows: slice, most: int) -> NDArray[np.int64]:
        """``[rows, most]``; see :func:`newest_before`."""
        found = self.end[rows, None] - 1 - np.arange(most)
        seen = found >= self.first[rows, None]
        return np.where(seen, self.order[found * seen], -1) if len(self.order) else np.full_like(found, -1)
