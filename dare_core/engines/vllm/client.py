"""The engine's interface over vLLM: starts the server in vLLM's environment and speaks its JSON lines."""

from dataclasses import asdict
from typing import Any

from dare_core import errors
from dare_core.decoding import EngineConfig, OnTokens, Request, Result, Statistics, TextEngine
from dare_core.engines.peer_process import PeerProcess
from dare_core.engines.vllm import launch
from dare_core.engines.vllm.options import VllmOptions
from dare_core.errors import DareError, ModelError, ProgramMissingError
from dare_core.pools import Pool


class VllmServer:
    """A running vLLM with its model loaded.

    Attributes:
        version: of vLLM.
        vocabulary: token ids are below it.
        step_seconds: what steps took when it started, by their sequences and drafted tokens.

    Raises:
        ProgramMissingError: the interpreter is not there.
        ModelError: vLLM is not installed there, or in a version that was not tried, or does not start on the model.
    """

    def __init__(self, options: VllmOptions) -> None:
        if not options.python.exists():
            raise ProgramMissingError(
                f"vLLM's environment has no interpreter {options.python}; run `make vllm-env`, or set DARE_VLLM_PYTHON"
            )
        self.options = options
        variables = {**launch.this_checkout(), "NUMBA_CACHE_DIR": str(options.compiled)}
        self._process = PeerProcess("vLLM", options.command(), options.log, variables)
        ready = _checked(self._process.answer())
        self.version, self.vocabulary = ready["version"], int(ready["vocabulary"])
        self.step_seconds: dict[str, dict[str, float]] = ready["step_seconds"]

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The server's answer; see :mod:`dare_core.engines.vllm.server`.

        Raises:
            DareError: what went wrong there, or that the process ended.
        """
        return _checked(self._process.ask(question))

    def close(self) -> None:
        """End it."""
        self._process.close()


class VllmEngine(TextEngine):
    """vLLM as an engine, for one run at a time on one server.

    Args:
        server: takes over from the engine before.
        pool: what to draft from beside the texts' own words and those of texts finished before.
        config: as of the engine; what concerns its cache, its weights and its prompts is vLLM's affair.
        drafter: further arguments of :class:`~dare_core.pools.PoolDrafter`; None decodes plainly.

    Attributes:
        statistics: of all texts so far; steps, rows and times are not known here.
        seconds: that vLLM has worked.

    Raises:
        ModelError: the server was started for shorter or fewer sequences.
        PoolError: the pool cannot be opened there.
    """

    def __init__(
        self, server: VllmServer, pool: Pool | None, config: EngineConfig, drafter: dict[str, Any] | None
    ) -> None:
        super().__init__()
        options = server.options
        if config.max_sequences > options.max_sequences or config.max_length > options.max_length:
            raise ModelError(
                f"vLLM was started for {options.max_sequences} sequences of {options.max_length} tokens, "
                f"not for {config.max_sequences} of {config.max_length}"
            )
        self._server, self._config = server, config
        self._asked: dict[str, Request] = {}  # by the name that vLLM knows it by
        self._names = 0
        self.seconds = 0.0
        server.ask({"begin": self._job(pool, drafter)})

    def _job(self, pool: Pool | None, drafter: dict[str, Any] | None) -> dict[str, Any]:
        config = self._config
        return {
            "pool": pool and {
                "root": pool.store.location, "cache": str(pool.store.files.cache.absolute()),
                "cache_bytes": pool.store.files.cache_bytes, "version": pool.manifest.version,
                "tokenizer_hash": pool.manifest.tokenizer_hash,
            },
            "rule": asdict(config.rule),
            "ends": sorted(config.eos_token_ids),
            "structural": sorted(config.structural_token_ids),
            "nodes": config.draft_nodes,
            "budget": config.budget,
            "drafter": drafter,
            "max_sequences": config.max_sequences,
        }  # fmt: skip

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting) + max(0, len(self._asked) - self._config.max_sequences)

    @property
    def busy(self) -> bool:
        """Whether anything waits or is being written."""
        return bool(self._waiting or self._asked)

    def step(self, on_tokens: OnTokens | None = None) -> list[Result]:
        """As many forward passes as finish a text, or one for ``on_tokens`` to be told; the texts that it finished."""
        refused: list[Result] = []
        rows: list[list[Any]] = []
        while self._waiting:
            request = self._waiting.popleft()
            if problem := request.problem(self._server.vocabulary, self._config.max_length):
                refused.append(Result.refused(request, problem))
                continue
            self._names += 1
            name = str(self._names)  # ids are the caller's, and need not differ
            self._asked[name] = request
            rows.append(
                [name, request.group, [int(token) for token in request.prompt_token_ids], request.max_new_tokens]
            )
        if not self._asked:
            return refused
        answer = self._server.ask({"add": rows, "each_step": on_tokens is not None})
        self.seconds += answer["seconds"]
        if on_tokens:
            for name, tokens in answer["tokens"]:
                on_tokens(self._asked[name].id, tokens)
        return refused + [self._result(name, tokens, facts) for name, tokens, facts in answer["results"]]

    def _result(self, name: str, tokens: list[int], facts: dict[str, Any]) -> Result:
        request, statistics = self._asked.pop(name), Statistics(**facts["statistics"])
        self.statistics.add(statistics)
        if facts["error"]:
            return Result(request.id, [], None, facts["error"], facts["draft_group"], statistics)
        return Result(request.id, tokens, facts["finish_reason"], None, facts["draft_group"], statistics)


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise getattr(errors, answer["kind"], DareError)(answer["error"])
    return answer
