"""How fast a server may be asked."""

import asyncio

_MINUTE = 60.0


class Pace:
    """Lets units pass one after another, evenly, so many in a minute.

    Args:
        per_minute: None lets everything pass at once.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = _MINUTE / per_minute if per_minute else 0.0  # of one unit
        self._free = 0.0

    async def take(self, units: int = 1) -> None:
        """Wait until all units that were taken before have had their time; then these begin to."""
        if not self._seconds:
            return
        now = asyncio.get_running_loop().time()
        begin = max(self._free, now)
        self._free = begin + units * self._seconds
        await asyncio.sleep(begin - now)

    def give_back(self, units: int) -> None:
        """Units that were taken and not used; negative ones were used and not taken."""
        self._free -= units * self._seconds
