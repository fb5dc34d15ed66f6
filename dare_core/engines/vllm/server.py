"""vLLM as a program for its own environment (``scripts/install_vllm.sh``), asked in JSON lines.

``VENV/bin/python -m dare_core.engines.vllm.server OPTIONS`` says when it is ready, and then answers each line of
standard input with one of standard output::

    {"version": "0.32.0", "vocabulary": 49152, "load_seconds": 21.5, "step_seconds": {"1": {"0": 0.04, …}, …}}
    {"begin": {"pool": {"root": "…", "version": "…", …}, "max_sequences": 16, …}}
    {"begun": true}
    {"add": [["id", "group", [1, 2], 64]], "each_step": false}
    {"tokens": [["id", [4, 5]]], "results": [["id", [4, 5, …], {"draft_group": "…", "error": null, …}]], "seconds": 1.9}

``add`` hands over requests, which may be none, and works until one is finished, or with ``each_step`` for one step.
Where something cannot be done the answer is ``{"error": "what", "kind": "PoolError"}``. The program ends with its
input. Everything that vLLM has to say goes to standard error.
"""

import argparse
import json
import sys
import time
from collections import defaultdict, deque
from math import ceil
from typing import Any, Final

from dare_core.engines.vllm import launch
from dare_core.errors import DareError, ModelError
from dare_core.storage.processors import processors

#: Sequences of the steps that are timed when the engine starts, beside as many as it may have; and for each sequence,
#: tokens drafted in them. Kernels work in blocks of rows, so a step's cost has steps of its own.
_MEASURED_SEQUENCES: Final = (1, 4, 16, 64)
_MEASURED_DRAFTS: Final = (0, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16)
#: No step is timed that verifies more tokens.
_MOST_DRAFTED: Final = 160
_REPEATS: Final = 3
#: The timed sequences have one prompt of some of these blocks and one token: vLLM keeps blocks, and reads them once.
_BLOCK: Final = 128
_BLOCKS: Final = 2
#: New tokens of theirs at most: more than the steps emit.
_MEASURED_TOKENS: Final = 128


class Server:
    """vLLM's engine, and the requests that wait for it or are in it.

    Attributes:
        vocabulary: token ids are below it.
        step_seconds: what steps took when they were measured, by their sequences and drafted tokens.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        from vllm import EngineArgs, LLMEngine  # type: ignore[import-not-found]
        from vllm.usage.usage_lib import UsageContext  # type: ignore[import-not-found]

        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=arguments.model,
                dtype=arguments.dtype,
                load_format="safetensors",  # pickled weights are refused, as by our own engine
                trust_remote_code=arguments.trust_remote_code,
                quantization=arguments.quantization,
                tensor_parallel_size=arguments.tensor_parallel_size,
                # Where a text nears the end vLLM asks the proposer only as long as its longest path has room.
                max_model_len=arguments.max_length + arguments.draft_tokens + 1,
                max_num_seqs=arguments.max_sequences,
                kv_cache_memory_bytes=arguments.cache_bytes,
                **({"gpu_memory_utilization": arguments.memory_share} if arguments.memory_share else {}),
                speculative_config={
                    "method": "custom_class",
                    "model": "dare_core.engines.vllm.proposer.PoolProposer",
                    "num_speculative_tokens": arguments.draft_tokens,
                },
                worker_extension_cls="dare_core.engines.vllm.worker.DareWorker",
                skip_tokenizer_init=True,
                disable_log_stats=True,
            ),
            usage_context=UsageContext.LLM_CLASS,  # the defaults of vLLM's offline class
        )
        self.vocabulary = self._engine.model_config.get_vocab_size()
        self._most = arguments.max_sequences
        self._ends: list[int] = []
        self._waiting: deque[list[Any]] = deque()
        self._inside: set[str] = set()
        self._written: defaultdict[str, list[int]] = defaultdict(list)
        self.step_seconds = self._measure(arguments.max_length, arguments.draft_tokens)

    def begin(self, job: dict[str, Any]) -> dict[str, Any]:
        """Set out for a run; see :meth:`dare_core.engines.vllm.proposer.PoolProposer.begin`.

        Args:
            job: its, and ``max_sequences``.
        """
        self._drop()
        self._most, self._ends = job["max_sequences"], job["ends"]
        # Prompts of one run share what they begin with; a run must not find those of the one before.
        self._engine.reset_prefix_cache()
        self._engine.collective_rpc("dare_begin", args=(job,))
        return {"begun": True}

    def _drop(self) -> None:
        """Forget what waits and is being written: nobody asks for it any more."""
        self._waiting.clear()
        if self._inside:
            self._engine.abort_request(list(self._inside))
        self._inside.clear()
        self._written.clear()

    def work(self, requests: list[list[Any]], each_step: bool) -> dict[str, Any]:
        """Take in requests, and make steps until a text is finished, or one step; see the module for the answer."""
        self._waiting.extend(requests)
        began = time.perf_counter()
        tokens: list[Any] = []
        finished: list[Any] = []
        while (self._waiting or self._inside) and not finished:
            while self._waiting and len(self._inside) < self._most:
                self._admit(self._waiting.popleft(), each_step)
            for output in self._engine.step():
                [made] = output.outputs
                tokens.append([output.request_id, list(made.token_ids)])
                self._written[output.request_id] += made.token_ids
                if output.finished:
                    finished.append(output.request_id)
            self._inside.difference_update(finished)
            if each_step:
                break
        facts = self._engine.collective_rpc("dare_take", args=(finished,))[0] if finished else []
        return {
            "tokens": tokens if each_step else [],
            "results": [[each, self._written.pop(each), fact] for each, fact in zip(finished, facts, strict=True)],
            "seconds": time.perf_counter() - began,
        }

    def _admit(self, request: list[Any], each_step: bool) -> None:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input  # type: ignore[import-not-found]
        from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

        request_id, group, prompt, max_new_tokens = request
        kind = RequestOutputKind.DELTA if each_step else RequestOutputKind.FINAL_ONLY
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=self._ends,
            ignore_eos=True,
            detokenize=False,
            output_kind=kind,
            extra_args={"dare": {"id": request_id, "group": group}},
        )
        self._engine.add_request(request_id, tokens_input(prompt), parameters)
        self._inside.add(request_id)

    def _measure(self, max_length: int, longest: int) -> dict[int, dict[int, float]]:
        """Have the proposer learn what steps cost, by drafts of nothing in particular."""
        prompt = [5, 6] * (_BLOCK // 2 * min(_BLOCKS, max_length // 2 // _BLOCK)) + [7]
        tokens = min(_MEASURED_TOKENS, max_length - len(prompt))
        self._engine.collective_rpc("dare_measure", args=(0,))
        most = self._most
        for sequences in sorted({most, *(count for count in _MEASURED_SEQUENCES if count < most)}):
            for number in range(sequences):
                self._admit([f"measured {sequences} {number}", "", prompt, tokens], each_step=False)
            sizes = sorted({ceil(each * sequences) for each in _MEASURED_DRAFTS if each <= longest})
            sizes = [size for size in sizes if size <= max(_MOST_DRAFTED, sequences)]
            for size in [0, 0, sizes[-1], *sizes * _REPEATS]:
                self._engine.collective_rpc("dare_measure", args=(size,))
                self._engine.step()
            self._engine.step()
            self._drop()
        seconds: dict[int, dict[int, float]] = self._engine.collective_rpc("dare_measured")[0]
        return seconds


def _answer(server: Server, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        if "begin" in asked:
            return server.begin(asked["begin"])
        return server.work(asked["add"], asked["each_step"])
    except DareError as error:
        return {"error": str(error), "kind": type(error).__name__}


def _load(arguments: argparse.Namespace) -> Server:
    launch.check_installed()
    try:
        return Server(arguments)
    except Exception as error:  # whatever it is, the user's process is to say it
        import traceback

        traceback.print_exc()
        raise ModelError(f"vLLM does not start on {arguments.model}: {str(error).strip() or error!r}") from error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="vLLM with our pools, asked in JSON lines")
    parser.add_argument("model", help="hub id, or folder in the form of transformers")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--max-length", type=int, required=True, help="tokens of a prompt and its text")
    parser.add_argument("--max-sequences", type=int, required=True, help="sequences decoded at once")
    parser.add_argument("--draft-tokens", type=int, required=True, help="longest path that is drafted")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--cache-bytes", type=int, help="memory for keys and values")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--memory-share", type=float)
    parser.add_argument("--quantization")
    parser.add_argument("--trust-remote-code", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Load, say so, and answer until standard input ends."""
    arguments = _arguments()
    launch.restart(launch.environment(arguments.threads), __spec__.name)
    answers = launch.answers()
    began = time.perf_counter()
    try:
        server = _load(arguments)
    except DareError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}), file=answers)
        return
    ready = {
        "version": launch.check_installed(),
        "vocabulary": server.vocabulary,
        "load_seconds": time.perf_counter() - began,
        "step_seconds": server.step_seconds,
    }
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        print(json.dumps(_answer(server, json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
