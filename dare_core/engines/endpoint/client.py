"""One chat request to a server that speaks the OpenAI API: sent, again where that may help, and its answer read."""

import asyncio
import json
import logging
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx2
import openai

from dare_core.config.settings import Settings
from dare_core.engines.endpoint.pace import Pace
from dare_core.errors import EndpointError, ModelError, SettingError

#: Turns of a conversation, each with ``role`` and ``content``.
Messages = Sequence[Mapping[str, str]]

#: Seconds before the second try; each later pause is twice as long, up to the longest.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
#: Seconds that a server may tell us to wait.
_LONGEST_ASKED: Final = 120.0
#: Times that a request waits because the server throttles; these are no failures of its own.
_MOST_THROTTLED: Final = 20
#: Bytes of an answer beside its text, and of each token that it may have.
_SPARE_BYTES: Final = 65_536
_TOKEN_BYTES: Final = 256
#: What shows whether a server answers at all, and the tokens that its answer may have.
_CANARY: Final = ({"role": "user", "content": "Say yes."},)
_CANARY_TOKENS: Final = 16
#: Characters of what a server says that an error shows.
_SHOWN: Final = 200
_MOST_TOKENS: Final = 2**31 - 1


@dataclass(frozen=True)
class Answer:
    """What a server wrote.

    Attributes:
        finish_reason: ``stop`` or ``length``.
        prompt_tokens, new_tokens: as the server counts; None where it does not say.
        seconds: from the last time that the request was sent.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    new_tokens: int | None
    seconds: float


class RefusedError(Exception):
    """The server will never write this text; says why."""


class UnfitError(RefusedError):
    """The server answered, and its answer holds no text that can be kept."""


class PassingError(Exception):
    """The request failed, and may succeed when it is sent again.

    Attributes:
        wait: seconds that the server asks for.
        throttled: it says that it was asked too often.
    """

    def __init__(self, reason: str, wait: float | None = None, throttled: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.throttled = wait, throttled


class ChatClient:
    """Asks one server. To be used within one event loop.

    Args:
        settings: where the server is, its key, the model, rates and patience.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.endpoint_url is not None
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # else a line for each request
        self._url, self._model = settings.endpoint_url, settings.endpoint_model or settings.model
        self._key = settings.endpoint_key.get_secret_value() if settings.endpoint_key else None
        self._timeout, self._retries = settings.endpoint_timeout, settings.endpoint_retries
        tasks = settings.accelerators
        self._requests = Pace(_share(settings.endpoint_requests_per_minute, tasks))
        self._tokens = Pace(_share(settings.endpoint_tokens_per_minute, tasks))
        self._paused_until = 0.0
        self._has_answered = False
        many = settings.endpoint_concurrency
        self._openai = openai.AsyncOpenAI(
            api_key=self._key or "none",  # some must be given
            base_url=self._url,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpx2Client(
                timeout=settings.endpoint_timeout,
                limits=httpx2.Limits(max_connections=many + 1, max_keepalive_connections=many + 1),
                follow_redirects=False,  # prompts go where the setting says and nowhere else
            ),
        )

    async def write(self, messages: Messages, tokens: int, max_tokens: int) -> Answer:
        """The server's answer.

        Args:
            messages: the conversation so far.
            tokens: about so many it has, for the rate limit.
            max_tokens: of the answer.

        Raises:
            RefusedError: this text cannot be had, while others can.
            EndpointError: the server does not answer, or throttles without end; another try may find it well.
            SettingError: it refuses the key.
            ModelError: it knows no such model, or refuses whatever is asked.
        """
        failures = throttled = 0
        while True:
            try:
                return await self._ask(messages, tokens, max_tokens)
            except UnfitError:
                raise
            except RefusedError:
                if not self._has_answered:
                    await self._require_answers()
                raise
            except PassingError as error:
                throttled, failures = throttled + error.throttled, failures + (not error.throttled)
                pause = (error.wait or 0.0) + _pause(throttled if error.throttled else failures)
                if error.throttled:
                    self._pause_all(pause)
                if failures > self._retries or throttled > _MOST_THROTTLED:
                    return await self._ask_finally(messages, tokens, max_tokens, str(error))
                await asyncio.sleep(pause)

    async def _ask_finally(self, messages: Messages, tokens: int, max_tokens: int, reason: str) -> Answer:
        """Whose fault is it? If the server answers something else, the request has one more try, and fails alone."""
        try:
            with suppress(RefusedError):  # which is an answer too
                await self._ask(_CANARY, _CANARY_TOKENS, _CANARY_TOKENS)
        except PassingError as error:
            raise EndpointError(f"{self._url} does not answer: {error}; run the same again once it does") from None
        try:
            return await self._ask(messages, tokens, max_tokens)
        except PassingError as error:
            raise RefusedError(f"{error}; sent {self._retries + 2} times, last after: {reason}") from None

    async def _require_answers(self) -> None:
        """Tell a text that cannot be had from a server that none can be had from."""
        try:
            await self._ask(_CANARY, _CANARY_TOKENS, _CANARY_TOKENS)
        except (PassingError, UnfitError):
            return
        except RefusedError as error:
            raise ModelError(f"{self._url} refuses whatever model {self._model!r} is asked: {error}") from None

    async def _ask(self, messages: Messages, tokens: int, max_tokens: int) -> Answer:
        """Send a request once, when its time has come."""
        loop = asyncio.get_running_loop()
        reserved = tokens + max_tokens
        await self._requests.take()
        await self._tokens.take(reserved)
        while (left := self._paused_until - loop.time()) > 0:
            await asyncio.sleep(left)
        begun = loop.time()
        answer = read_answer(await self._sent(messages, max_tokens), loop.time() - begun)
        if answer.new_tokens is not None:
            self._tokens.give_back(reserved - (answer.prompt_tokens or tokens) - answer.new_tokens)
        self._has_answered = True
        return answer

    async def _sent(self, messages: Messages, max_tokens: int) -> bytes:
        most, body = _SPARE_BYTES + _TOKEN_BYTES * max_tokens, bytearray()
        asked: Any = list(messages)
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._openai.chat.completions.with_streaming_response.create(
                    model=self._model, messages=asked, max_tokens=max_tokens, temperature=0
                ) as response,
            ):
                async for piece in response.iter_bytes():
                    body += piece
                    if len(body) > most:
                        raise UnfitError(f"the answer has more than {most} bytes, for {max_tokens} tokens")
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException):
            raise PassingError(f"no answer within {self._timeout:g} s") from None
        except openai.APIStatusError as error:
            raise self._judged(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            raise PassingError(self._safe(f"{type(cause).__name__}: {cause}")) from None
        return bytes(body)

    def _judged(self, error: openai.APIStatusError) -> Exception:
        """What a status other than success means."""
        said = self._safe(f"status {error.status_code}: {_message(error)}")
        if error.status_code in (401, 403):
            return SettingError(f"{self._url} refuses the key: {said}; set DARE_ENDPOINT_KEY, or the file of it")
        if error.status_code in (404, 405) or error.status_code < 400:
            return ModelError(
                f"{self._url} has no model {self._model!r}, or is no OpenAI API: {said}; see the settings endpoint_url "
                "(it mostly ends in /v1) and endpoint_model"
            )
        wait = _asked_wait(error.response.headers)
        if error.status_code == 429:
            return PassingError(said, wait, throttled=True)
        if error.status_code in (408, 409, 425) or error.status_code >= 500:
            return PassingError(said, wait)
        return RefusedError(said)

    def _pause_all(self, seconds: float) -> None:
        """A server that throttles one request would throttle the others."""
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)

    def _safe(self, said: str) -> str:
        """What a server said, on one line and without the key, which some repeat."""
        said = " ".join((said.replace(self._key, "[key]") if self._key else said).split())
        return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"


def read_answer(body: bytes, seconds: float) -> Answer:
    """A chat completion.

    Raises:
        PassingError: it is none.
        UnfitError: it holds no text that can be kept.
    """
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        reason, text = choice["finish_reason"], choice["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise PassingError(f"the answer is no chat completion: {type(error).__name__}") from None
    if reason not in ("stop", "length"):
        if reason is None:
            raise PassingError("the answer is no chat completion: it has no end")
        raise UnfitError(f"the server ended the text with {str(reason)[:_SHOWN]!r}")
    if not isinstance(text, str):
        raise UnfitError("the answer has no text")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UnfitError("the answer has half of a surrogate pair, which is no text")
    usage = found.get("usage")
    return Answer(text, reason, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"), seconds)


def _count(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= _MOST_TOKENS else None


def _message(error: openai.APIStatusError) -> str:
    """What a server says of an error."""
    body: Any = error.body
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and name in body:
            body = body[name]
    return str(body if body is not None else error.message)


def _share(per_minute: int | None, tasks: int) -> float | None:
    return None if per_minute is None else per_minute / tasks


def _pause(failures: int) -> float:
    """Twice as long after each failure, and by chance up to half shorter, so that many do not come back at once."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 30))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _asked_wait(headers: httpx2.Headers) -> float | None:
    """Seconds that a ``Retry-After`` asks for."""
    asked = headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # TypeError: a date without a zone
            return None
    return min(max(seconds, 0.0), _LONGEST_ASKED) if math.isfinite(seconds) else None
