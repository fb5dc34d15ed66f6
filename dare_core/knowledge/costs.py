"""What a run costs: how many entities need a text and why the others do not, and what the texts will take.

Seconds are an engine's, loading excluded (DESIGN.md 13): with several accelerators a run takes less by the clock and
costs the same.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from dare_core.config.settings import Settings
from dare_core.schemas import Kind
from dare_core.warehouse.renderings import DUE_VERDICTS
from dare_core.warehouse.runs import Throughput

#: Shards of one kind at most: a plan names all of them.
MOST_SHARDS: Final = 10_000
_LARGEST: Final = 4096  # requests whose texts are judged and embedded at once
_HOUR: Final = 3600.0


class Funnel(BaseModel):
    """The entities of one kind, from those that are there to those that are asked about.

    Attributes:
        seen: all of them: ``requests`` and those skipped.
        changed: those that are new, that their last prompt does not show as they are, or that were last asked with
            other settings; whether or not they are asked about now.
        expired: those whose text is too old.
        requests: texts to write: at most, until all are rendered.
        skipped: the others, by reason.
    """

    model_config = ConfigDict(frozen=True)

    seen: int
    changed: int
    expired: int
    requests: int
    skipped: dict[str, int]

    @classmethod
    def of(cls, verdicts: Mapping[str, int], requests: int, limited: bool) -> "Funnel":
        """Put together what the warehouse found.

        Args:
            verdicts: entities by :func:`dare_core.warehouse.renderings.count_verdicts`.
            requests: how many of the due ones the run takes.
            limited: whether it leaves some out.
        """
        skipped = {verdict: count for verdict, count in verdicts.items() if verdict not in DUE_VERDICTS}
        due = sum(verdicts.get(verdict, 0) for verdict in DUE_VERDICTS)
        if limited and due > requests:
            skipped["over_limit"] = due - requests
        return cls(
            seen=requests + sum(skipped.values()),
            changed=sum(verdicts.get(verdict, 0) for verdict in ("new", "changed", "few_new_events")),
            expired=verdicts.get("expired", 0),
            requests=requests,
            skipped=dict(sorted(skipped.items())),
        )

    def rendered(self, settled: Mapping[str, int]) -> "Funnel":
        """The same, once it is known of how many entities the prompt needed no text, by reason."""
        if not settled:
            return self
        skipped = dict(sorted((Counter(self.skipped) + Counter(settled)).items()))
        return self.model_copy(update={"requests": self.requests - sum(settled.values()), "skipped": skipped})


class Estimate(BaseModel):
    """What the texts of a plan will take, at most: some entities turn out to need none.

    Attributes:
        tokens: new tokens of all texts.
        seconds: of one engine; None where no run was measured.
        cost: in the currency of the setting ``cost_per_hour``; None where that, or ``seconds``, is unknown.
        tokens_per_second: that ``seconds`` rests on.
        basis: where the figures come from, in words.
    """

    model_config = ConfigDict(frozen=True)

    tokens: int
    seconds: float | None
    cost: float | None
    tokens_per_second: float | None
    basis: str


def estimate(
    requests: Mapping[Kind, int], measured: Throughput, max_new_tokens: int, cost_per_hour: float | None
) -> Estimate:
    """Expect of so many texts by kind what earlier runs took."""
    tokens = round(sum(n * expected_tokens(kind, measured, max_new_tokens) for kind, n in requests.items()))
    speed = measured.tokens_per_second
    seconds = tokens / speed if speed else None
    bases = [
        f"{kind}: {measured.tokens_per_text[kind]:.0f} tokens a text, measured"
        if kind in measured.tokens_per_text
        else f"{kind}: {max_new_tokens} tokens a text, the most that are allowed"
        for kind in requests
    ]
    unknown = "no run of this model and precision was measured yet"
    bases.append(f"speed of the last {measured.runs} runs" if speed else unknown)
    return Estimate(
        tokens=tokens,
        seconds=seconds,
        cost=cost(seconds, cost_per_hour),
        tokens_per_second=speed,
        basis="; ".join(bases),
    )


def measurement(
    kinds: Mapping[str, Mapping[str, int]], seconds: float, load_seconds: float, cost_per_hour: float | None
) -> dict[str, Any]:
    """What ``generation_run.measured`` holds.

    Args:
        kinds: ``{"texts": n, "tokens": n}`` by kind.
        seconds: of the engine, loading excluded.
        load_seconds: that loading and compiling took, which are paid for as well.
        cost_per_hour: of an accelerator.
    """
    tokens = sum(of_kind["tokens"] for of_kind in kinds.values())
    return {
        "tokens": tokens,
        "seconds": seconds,
        "load_seconds": load_seconds,
        "cost": cost(seconds + load_seconds, cost_per_hour),
        "tokens_per_second": tokens / seconds if seconds else None,
        "kinds": {kind: dict(of_kind) for kind, of_kind in kinds.items()},
    }


def cost(seconds: float | None, cost_per_hour: float | None) -> float | None:
    """What accelerator seconds cost; None where one of both is unknown."""
    return None if seconds is None or cost_per_hour is None else seconds / _HOUR * cost_per_hour


def expected_tokens(kind: Kind, measured: Throughput, max_new_tokens: int) -> float:
    """New tokens of a text: the mean of earlier ones, or the most that are allowed where there are none."""
    return measured.tokens_per_text.get(kind, float(max_new_tokens))


def shard_size(settings: Settings, kind: Kind, measured: Throughput, max_new_tokens: int, due: int) -> int:
    """Requests that keep one engine busy for ``shard_minutes``; ``shard_size`` where no speed was measured yet.

    More, where ``due`` entities would make more shards than a plan can name.
    """
    least = -(-due // MOST_SHARDS)
    if measured.tokens_per_second is None:
        return max(settings.shard_size, least)
    tokens = measured.tokens_per_second * settings.shard_minutes * 60
    timely = round(tokens / expected_tokens(kind, measured, max_new_tokens))
    return max(1, least, min(timely, _LARGEST))
