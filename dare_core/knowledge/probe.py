"""How fast plain decoding would have been: a few steps of it, timed while the model of a generation task is loaded."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from dare_core.engines.precision import storage_of
from dare_core.storage import run_files
from dare_core.storage.locations import Location, read_bytes

if TYPE_CHECKING:
    from dare_core.config.settings import Settings
    from dare_core.decoding import Request
    from dare_core.engines.protocol import Engines

_MOST_STEPS: Final = 32
_LEAST_STEPS: Final = 4
_FILE: Final = "probe.json"


@dataclass(frozen=True)
class Probe:
    """Plain decoding beside what a shard's texts really took.

    Attributes:
        sequences: decoded at once, as many as the shard had at once.
        steps: of plain decoding that were timed, prompts read before.
        plain_tokens_per_second: of the shard's tokens, by the median of these steps and what reading prompts took.
        tokens, seconds: of the shard's own texts, reading the prompts included.
        probe_seconds: that all of this took.
    """

    sequences: int
    steps: int
    plain_tokens_per_second: float
    tokens: int
    seconds: float
    probe_seconds: float

    @property
    def plain_seconds(self) -> float:
        """What the shard would have taken plainly, reading the prompts included."""
        return self.tokens / self.plain_tokens_per_second


def probe(
    settings: "Settings",
    engines: "Engines",
    requests: "Sequence[Request]",
    tokens: int,
    seconds: float,
) -> Probe | None:
    """Decode some requests plainly for ``settings.probe_share`` of ``seconds`` at most, and time the steps.

    Args:
        settings: batch size, and how the model runs.
        engines: that the shard was written with.
        requests: all of the shard that was written; as many are decoded as fit into a batch.
        tokens, seconds: what was written, and how long it took.

    Returns:
        None where that time does not suffice for a few steps.
    """
    from dare_core.decoding import EngineConfig, Request, Rule

    budget = settings.probe_share * seconds
    if not budget or not tokens:
        return None
    started = time.perf_counter()
    asked = [Request(r.id, r.group, r.prompt_token_ids, _MOST_STEPS) for r in requests[: settings.batch_size]]
    longest = max(len(request.prompt_token_ids) for request in asked) + _MOST_STEPS
    config = EngineConfig(
        max_sequences=len(asked),
        max_length=min(longest, engines.facts.context_length),
        rule=Rule("strict"),
        eos_token_ids=engines.facts.eos_token_ids,
        draft_nodes=0,
        weights=storage_of(settings),
        compile=settings.compile_layers,
    )
    engine = engines.open(config, None, drafts=False)
    engine.add(asked)
    emitted: list[str] = []
    timed: list[float] = []
    reading, meanwhile = 0.0, 0  # seconds until all prompts are read, and tokens that came in them
    full = False  # whether the step before emitted for all, so that this one reads no prompt
    while engine.busy and (begun := time.perf_counter()) - started < budget:
        emitted.clear()
        engine.step(lambda request_id, _: emitted.append(request_id))
        took = time.perf_counter() - begun
        if full and len(emitted) == len(asked):
            timed.append(took)
        elif not timed:
            reading, meanwhile = reading + took, meanwhile + len(emitted)
        full = len(emitted) == len(asked)
    if len(timed) < _LEAST_STEPS:
        return None
    each = statistics.median(timed) / len(asked)
    prompts = max(0.0, reading - meanwhile * each) * len(requests) / len(asked)
    return Probe(
        sequences=len(asked),
        steps=len(timed),
        plain_tokens_per_second=tokens / (tokens * each + prompts),
        tokens=tokens,
        seconds=seconds,
        probe_seconds=time.perf_counter() - started,
    )


def write_probe(staged: Location, measured: Probe) -> None:
    """Keep a probe beside its shard's manifest."""
    run_files.write_json(staged / _FILE, json.dumps(asdict(measured)))


def read_probe(staged: Location) -> Probe | None:
    """The probe of a shard; None where there is none."""
    try:
        return Probe(**json.loads(read_bytes(staged / _FILE)))
    except FileNotFoundError:
        return None
