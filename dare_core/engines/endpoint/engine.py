"""The engine's interface over a server that speaks the OpenAI API: many requests under way at once."""

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.decoding import EngineConfig, OnTokens, Request, Result, Statistics, TextEngine
from dare_core.engines.endpoint.client import ChatClient, Messages, RefusedError
from dare_core.engines.precision import precision_of
from dare_core.models import ModelFacts
from dare_core.pools import Pool


@dataclass(frozen=True)
class ChatRequest(Request):
    """A text to write, asked in messages; its token ids identify and measure it."""

    messages: Messages = ()


def turns(message: str, system: str = "") -> Messages:
    """What a user asks, behind what the system says, if anything."""
    asked = {"role": "user", "content": message}
    return ({"role": "system", "content": system}, asked) if system else (asked,)


@dataclass(frozen=True)
class ChatResult(Result):
    """A text as a server wrote it; ``token_ids`` are what our tokenizer makes of it."""

    text: str = ""


class EndpointEngines:
    """A server, and the tokenizer of ``settings.model`` that counts what goes there and comes back.

    Raises:
        SettingError: no server is named, or a setting is in force that a server has no use for.
        ModelError: the tokenizer is not there.
    """

    def __init__(self, settings: Settings) -> None:
        precision_of(settings)  # which refuses what cannot be had
        self._settings = settings
        self._tokenizer = models.load_tokenizer(settings)
        self.facts = ModelFacts(frozenset(), models.context_length(settings))
        self._loop = _Loop()
        self._client = ChatClient(settings)
        self._engine: EndpointEngine | None = None

    def open(self, config: EngineConfig, pool: Pool | None, drafts: bool = True) -> "EndpointEngine":
        """See :meth:`dare_core.engines.protocol.Engines.open`. Nothing is drafted."""
        if self._engine is not None:
            self._engine.abandon()
        self._engine = EndpointEngine(self._client, self._loop, self._token_ids, config.max_sequences)
        return self._engine

    def _token_ids(self, text: str) -> list[int]:
        # What spells a control token in a text is text.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


class EndpointEngine(TextEngine):
    """Has a server write texts, ``sequences`` at once.

    Args:
        client: asks the server.
        loop: it is used in.
        token_ids: of a text.
        sequences: requests under way at once.
    """

    def __init__(
        self, client: ChatClient, loop: "_Loop", token_ids: Callable[[str], list[int]], sequences: int
    ) -> None:
        super().__init__()
        self._client, self._loop, self._token_ids, self._sequences = client, loop, token_ids, sequences
        self._under_way: dict[Future[Result], Request] = {}
        self._done: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether anything waits or is being written."""
        return bool(self._waiting or self._under_way)

    def step(self, on_tokens: OnTokens | None = None) -> list[Result]:
        """The texts that came since the last time; waits for one at least.

        Raises:
            EndpointError, SettingError, ModelError: none can be had; see :meth:`ChatClient.write`. What waits or is
                under way is given up.
        """
        refused: list[Result] = []
        while self._waiting and len(self._under_way) < self._sequences:
            request = self._waiting.popleft()
            if not isinstance(request, ChatRequest):
                refused.append(Result.refused(request, "a server is asked in messages, not in token ids"))
                continue
            future = self._loop.start(self._written(request))
            self._under_way[future] = request
            future.add_done_callback(self._done.put)
        if refused or not self._under_way:
            return refused
        finished = [self._done.get()]
        while not self._done.empty():
            finished.append(self._done.get())
        results = [self._taken(future) for future in finished if future.exception() is None]
        if not results:
            self.abandon()
            raise finished[0].exception() or AssertionError
        for future in finished:
            if future.exception() is not None:  # is told behind the texts that came beside it
                self._done.put(future)
        for result in results:
            self.statistics.add(result.statistics)
            if on_tokens and result.token_ids:
                on_tokens(result.id, result.token_ids)
        return results

    def _taken(self, future: Future[Result]) -> Result:
        del self._under_way[future]
        return future.result()

    def abandon(self) -> None:
        """Give up what waits or is under way."""
        for future in self._under_way:
            future.cancel()
        self._under_way.clear()
        self._waiting.clear()

    async def _written(self, request: ChatRequest) -> Result:
        prompt, most = len(request.prompt_token_ids), request.max_new_tokens
        try:
            answer = await self._client.write(request.messages, prompt, most)
        except RefusedError as error:
            return Result.refused(request, str(error))
        ids = self._token_ids(answer.text)
        statistics = Statistics(
            prompt_tokens=prompt if answer.prompt_tokens is None else answer.prompt_tokens,
            new_tokens=min(len(ids), most) if answer.new_tokens is None else answer.new_tokens,
            seconds=answer.seconds,
        )
        return ChatResult(request.id, ids, answer.finish_reason, None, None, statistics, answer.text)


class _Loop:
    """An event loop in a thread of its own, so that answers are read while the caller does something else."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Begin some work there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)
