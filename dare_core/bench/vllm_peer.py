"""vLLM's CPU build as a peer: a program for its own environment (see ``scripts/install_vllm.sh``), asked in JSON lines.

Token ids in, token ids out, greedy. ``VENV/bin/python vllm_peer.py MODEL_FOLDER`` says when it is ready, and then
answers each line of standard input with one of standard output::

    {"ready": true, "version": "0.32.0", "load_seconds": 21.5}
    {"prompts": [[1, 2], [3]], "max_new_tokens": 64, "batch_size": 2}
    {"tokens": 128, "seconds": 1.9, "texts": [[4, ...], [5, ...]]}

It ends with its input. Everything that vLLM has to say goes to standard error.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any


def environment(threads: int) -> dict[str, str]:
    """The variables that vLLM's notes on CPUs ask for, which must be there before the process starts.

    Intel's OpenMP and tcmalloc are loaded first. In one process vLLM leaves OpenMP alone, so its threads get here what
    vLLM gives those of its worker processes: a processor each, and 5 ms of spinning before they sleep, so that an idle
    peer costs nothing.

    Args:
        threads: processors to use.

    Raises:
        ValueError: this process may not use as many.
    """
    processors = sorted(os.sched_getaffinity(0))[:threads]
    if len(processors) < threads:
        raise ValueError(f"{threads} threads asked for, {len(processors)} processors at hand: lower --threads")
    folders = [Path(sys.prefix, "lib"), *Path("/usr/lib").glob("*-linux-gnu")]
    names = ("libiomp5.so", "libtcmalloc_minimal.so.4")
    libraries = [next((str(at / name) for at in folders if (at / name).exists()), None) for name in names]
    return {
        "LD_PRELOAD": ":".join(library for library in libraries if library),
        "OMP_NUM_THREADS": str(threads),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{','.join(map(str, processors))}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound above
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # What it saves ahead of time cannot be loaded on CPUs (0.32.0), so each start would compile anew.
        "VLLM_USE_AOT_COMPILE": "0",
        # Numba's OpenMP layer, which n-gram speculation would use, leaves the model with a single thread.
        "NUMBA_THREADING_LAYER": "workqueue",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def load(arguments: argparse.Namespace) -> Any:
    """vLLM's engine for batches of up to ``max_sequences``, warmed up.

    Args:
        arguments: the program's options.
    """
    from vllm import EngineArgs, LLMEngine  # type: ignore[import-not-found]
    from vllm.usage.usage_lib import UsageContext  # type: ignore[import-not-found]

    speculation = {"method": "ngram", "num_speculative_tokens": arguments.ngram, "prompt_lookup_max": 4}
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(arguments.model),
            dtype=arguments.dtype,
            max_model_len=arguments.max_length,
            max_num_seqs=arguments.max_sequences,
            kv_cache_memory_bytes=arguments.cache_gib << 30,
            speculative_config=speculation if arguments.ngram else None,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        ),
        usage_context=UsageContext.LLM_CLASS,  # the defaults of vLLM's offline class
    )
    write(engine, [], [[1, 2, 3, 1, 2, 3, 1, 2, 3]], max_new_tokens=8, batch_size=1)
    return engine


def write(
    engine: Any, eos: Sequence[int], prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> dict[str, Any]:
    """Write a text for every prompt with ``batch_size`` requests in flight; the next starts when one ends.

    Args:
        engine: what ``load`` gave.
        eos: end-of-sequence ids; none means those of the model folder.
        prompts: token ids.
        max_new_tokens: longest text; one ends sooner with an end-of-sequence token, which counts.
        batch_size: requests in flight, at most the engine's ``max_sequences``.

    Returns:
        ``tokens`` written, ``seconds`` it took including the prompts, ``texts`` as token ids in the prompts' order.

    Raises:
        ValueError: the batch is larger than the engine was started for.
    """
    from vllm import SamplingParams
    from vllm.inputs import tokens_input  # type: ignore[import-not-found]
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

    most = engine.vllm_config.scheduler_config.max_num_seqs
    if not 1 <= batch_size <= most:
        raise ValueError(f"batch_size {batch_size} is not in 1..{most}: raise --max-sequences")
    greedy = SamplingParams(
        temperature=0.0,
        max_tokens=max_new_tokens,
        stop_token_ids=list(eos),
        ignore_eos=bool(eos),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    # Prompts of one call share prefixes as they would in a user's run; a repeated call must not find them all.
    engine.reset_prefix_cache()
    texts: dict[int, list[int]] = {}
    waiting = iter(enumerate(prompts))
    started = time.perf_counter()
    for number, prompt in islice(waiting, batch_size):
        engine.add_request(str(number), tokens_input(prompt), greedy)
    while len(texts) < len(prompts):
        ended = engine.step()
        texts |= {int(output.request_id): list(output.outputs[0].token_ids) for output in ended}
        for number, prompt in islice(waiting, len(ended)):
            engine.add_request(str(number), tokens_input(prompt), greedy)
    seconds = time.perf_counter() - started
    ordered = [texts[number] for number in range(len(prompts))]
    return {"tokens": sum(map(len, ordered)), "seconds": seconds, "texts": ordered}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="vLLM on CPUs, asked in JSON lines")
    parser.add_argument("model", type=Path, help="folder in the form of transformers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a prompt and its text")
    parser.add_argument("--max-sequences", type=int, default=32, help="largest batch size that will be asked for")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ngram", type=int, default=0, help="tokens that n-gram speculation proposes; 0 turns it off")
    parser.add_argument("--eos", type=int, nargs="*", default=[], help="instead of the model folder's")
    parser.add_argument("--cache-gib", type=int, default=2, help="memory for keys and values")
    return parser.parse_args()


def main() -> None:
    """Load, say so, and answer until standard input ends."""
    arguments = _arguments()
    wanted = environment(arguments.threads)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)  # noqa: S606  itself, no shell

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM logs to standard output
    started = time.perf_counter()
    engine = load(arguments)
    ready = {"ready": True, "version": version("vllm-cpu"), "load_seconds": time.perf_counter() - started}
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        print(json.dumps(write(engine, arguments.eos, **json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
