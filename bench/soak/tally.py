"""What happened so far, counted by all threads."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

_ERRORS_LISTED: Final = 20


@dataclass
class Tally:
    """What happened so far; written by all threads."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    #: Seconds of every query, and of those since the last sample.
    latencies: "array[float]" = field(default_factory=lambda: array("f"))
    recent: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    refreshed_at: list[float] = field(default_factory=list)
    refresh_pid: int | None = None

    def error(self, what: str, said: object) -> None:
        """Count an error; the first ones are listed."""
        self.counts[what] += 1
        if len(self.errors) < _ERRORS_LISTED:
            self.errors.append(f"{what}: {' '.join(str(said).split())}")
