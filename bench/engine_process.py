"""Our engine as a process of its own, asked in JSON lines: for what a process decides when it starts.

``python -m bench.engine_process`` takes settings and pool from its first line, says when it is ready, and answers each
further line::

    {"settings": {...}, "pool": ["/a/folder", "tokenizer hash"], "contender": "fp32_relaxed", "batch_size": 16,
     "max_length": 256}
    {"ready": true}
    {"requests": [{"id": "1", "group": "Drama", "prompt_token_ids": [1, 2], "max_new_tokens": 96}]}
    {"seconds": 1.9, "texts": [[4, 5]]}
    {"count_launches": [{"id": "1", ...}]}
    {"per_layer": 40, "outside_layers": 12}

It ends with its input. What else is to be said goes to standard error.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dare_core.config.settings import Settings
from dare_core.engines.peer_process import PeerProcess, running
from dare_core.engines.plain import Run
from dare_core.engines.vllm.launch import answers, this_checkout
from dare_core.pools import Pool, PoolStore

if TYPE_CHECKING:
    from dare_core.decoding import Request

#: Requests and tokens of each that are written before the process says that it is ready.
_WARM_UP: Final = (2, 8)


class EngineProcess:
    """A running engine, for one contender at one batch size."""

    def __init__(self, process: PeerProcess) -> None:
        self._process = process

    def write(self, requests: "Sequence[Request]") -> Run:
        """The requests' texts by an engine that has learned nothing yet.

        Raises:
            DareError: the process ended; names its log.
        """
        answer = self._process.ask({"requests": [asdict(request) for request in requests]})
        return Run(answer["texts"], answer["seconds"])

    def count_launches(self, requests: "Sequence[Request]") -> dict[str, int]:
        """See :func:`bench.launches.count_launches`."""
        return self._process.ask({"count_launches": [asdict(request) for request in requests]})


@contextmanager
def engine_process(
    settings: Settings,
    pool: Pool,
    contender: str,
    batch_size: int,
    requests: "Sequence[Request]",
    log: Path,
    variables: Mapping[str, str] | None = None,
) -> Iterator[EngineProcess]:
    """Start a process for one of our contenders, and end it behind the block.

    Args:
        settings: the model's name, and how it is drafted and verified.
        pool: what is drafted from.
        contender: as :class:`bench.ours.OurEngines` opens it.
        batch_size: sequences at once.
        requests: some are written to warm up; the longest tells how much room texts need.
        log: of its standard error.
        variables: of its environment, beside ours.

    Raises:
        DareError: it does not start; names its log.
    """
    described = {
        "settings": settings.model_dump(mode="json", exclude={"warehouse_url"}),
        "pool": [pool.store.location, pool.manifest.tokenizer_hash],
        "contender": contender,
        "batch_size": batch_size,
        "max_length": max(len(request.prompt_token_ids) + request.max_new_tokens for request in requests),
    }
    command: list[str | Path] = [sys.executable, "-m", "bench.engine_process"]
    with running("our engine", command, log, {**this_checkout(), **(variables or {})}) as process:
        process.ask(described)
        count, tokens = _WARM_UP
        warm_up = [{**asdict(request), "max_new_tokens": tokens} for request in requests[:count]]
        process.ask({"requests": warm_up})
        yield EngineProcess(process)


def main() -> None:
    """Load, say so, and answer until standard input ends."""
    from bench.launches import count_launches
    from bench.ours import OurEngines, timed
    from dare_core.decoding import Request

    said = answers()
    described = json.loads(sys.stdin.readline())
    root, tokenizer_hash = described["pool"]
    pool = Pool.open(PoolStore(root), tokenizer_hash)
    engines = OurEngines(Settings(**described["settings"]), pool, described["max_length"])
    contender, size = described["contender"], described["batch_size"]
    print(json.dumps({"ready": True}), file=said)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        if "count_launches" in asked:
            requests = [Request(**request) for request in asked["count_launches"]]
            opened = partial(engines.open, contender, size, budget="fixed")
            print(json.dumps(count_launches(engines.language_model(contender).model, opened, requests)), file=said)
            continue
        run = timed(engines.open(contender, size), [Request(**request) for request in asked["requests"]])
        print(json.dumps({"seconds": run.seconds, "texts": run.texts}), file=said)


if __name__ == "__main__":
    main()
