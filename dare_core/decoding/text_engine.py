"""What every engine offers: requests wait in it, and each step takes some in and finishes some."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator

from dare_core.decoding.requests import OnTokens, Request, Result, RunStatistics


class TextEngine(ABC):
    """Writes texts, many at once.

    Attributes:
        statistics: of all steps so far.
    """

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()
        self.statistics = RunStatistics()

    def generate(self, requests: Iterable[Request], on_tokens: OnTokens | None = None) -> Iterator[Result]:
        """Write all texts; each result comes as soon as it is finished, in no set order.

        Args:
            requests: ids are the caller's; a request that cannot be served comes back as failed.
            on_tokens: called as tokens come.
        """
        self.add(requests)
        while self.busy:
            yield from self.step(on_tokens)

    def add(self, requests: Iterable[Request]) -> None:
        """Let requests wait for :meth:`step` to take them in."""
        self._waiting.extend(requests)

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Requests that wait for a place."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether anything waits or is being written."""

    @abstractmethod
    def step(self, on_tokens: OnTokens | None = None) -> list[Result]:
        """Write on at all texts that have a place; the texts that this finished.

        Args:
            on_tokens: called with what each text gains.
        """
