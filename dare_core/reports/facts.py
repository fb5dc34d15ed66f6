"""What a run did: read from the files under its folder and from the warehouse, whatever of both there is by now."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

import pyarrow.compute as pc
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.knowledge import shards
from dare_core.knowledge.figures import read_figures
from dare_core.knowledge.probe import Probe, read_probe
from dare_core.knowledge.shards import Plan
from dare_core.quality import data_docs
from dare_core.quality.findings import read_warnings
from dare_core.quality.texts import SUITE
from dare_core.storage import run_files
from dare_core.storage.locations import Location, exists
from dare_core.warehouse.knowledge import loaded_by_kind
from dare_core.warehouse.pools import pool_versions
from dare_core.warehouse.quarantine import refused_by_rule
from dare_core.warehouse.runs import generation_runs

_SAMPLES: Final = 2  # texts shown of each kind
_REFUSED: Final = 3  # texts shown of each rule that refused some
_BINS: Final = 60
_MEASURED: Final = ("kind", "group_name", "new_tokens", "steps", "drafted", "accepted", "relaxed", "available_at")

#: ``loaded``: done. ``idle``: nothing had to be written. ``failed``: validation stopped it. ``unplanned``, ``stopped``:
#: it ended before it was planned, or before its texts were loaded; the tasks' logs say why.
State = Literal["loaded", "idle", "failed", "unplanned", "stopped"]


@dataclass(frozen=True)
class Funnel:
    """Entities of one kind, from the warehouse's to those with a new text. None: that stage was not reached.

    Attributes:
        seen, changed, expired, skipped: as :class:`dare_core.knowledge.costs.Funnel` says.
        planned: texts asked for; of shards that no task has rendered yet, entities that are due.
        passed: texts that passed validation.
    """

    kind: str
    seen: int
    changed: int
    expired: int
    skipped: dict[str, int]
    planned: int
    generated: int
    passed: int | None
    loaded: int | None


@dataclass
class Written:
    """Sums over texts; DESIGN's units."""

    texts: int = 0
    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    relaxed: int = 0

    def add(self, other: "Written") -> None:
        """Count the other's texts too."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def tokens_per_step(self) -> float:
        """Plain decoding is 1."""
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def relaxed_share(self) -> float:
        """Tokens that were not the model's first choice."""
        return self.relaxed / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Throughput:
    """Tokens per second over the time in which texts were written, in equal bins."""

    started_at: datetime
    bin_seconds: float
    tokens_per_second: list[float]


@dataclass(frozen=True)
class Refusal:
    """What one rule of validation kept out: how many texts, and some of them as rows of QUARANTINE."""

    rule: str
    texts: int
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class RunFacts:
    """Everything that a report shows.

    Attributes:
        record: the run's row of GENERATION_RUN; empty where it has none.
        groups: what was written, by (kind, group).
        seconds: that engines worked.
        pool_hits: texts that drafted from their own group's pool.
        probes: by kind.
        pools: rows of POOL_VERSION that were drafted from.
        samples: rows of KNOWLEDGE.
        data_docs: Great Expectations' page on this run's texts, below the folder of all; None where there is none.
        warnings: what the checks of source, features and coverage found worth a look, in sentences.
    """

    run_id: str
    domain: str
    state: State
    record: dict[str, Any]
    plan: Plan | None
    funnels: list[Funnel]
    total: Written
    groups: dict[tuple[str, str], Written]
    seconds: float
    throughput: Throughput | None
    pool_hits: int
    probes: dict[str, Probe]
    refusals: list[Refusal]
    pools: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    data_docs: str | None
    warnings: list[str]

    @property
    def planned(self) -> int:
        """Texts asked for."""
        return sum(funnel.planned for funnel in self.funnels)

    @property
    def speedup(self) -> float | None:
        """How many times as long plain decoding would have taken on the probed shards, at least; None: not probed."""
        taken = sum(probe.seconds for probe in self.probes.values())
        return sum(probe.plain_seconds for probe in self.probes.values()) / taken if taken else None

    @property
    def tokens_per_second(self) -> float:
        """Of an engine, while it worked."""
        return self.total.tokens / self.seconds if self.seconds else 0.0


@dataclass
class _Staged:
    """What the staged parts hold."""

    groups: dict[tuple[str, str], Written] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[datetime, float, int]] = field(default_factory=list)  # end, seconds, tokens
    seconds: float = 0.0


def gather(settings: Settings, engine: Engine, run_id: str, domain: str) -> RunFacts:
    """Read what is known of a run.

    Args:
        settings: where the run's folder is.
        engine: the warehouse.
        run_id: a run, which may have failed at any stage, or not have been planned.
        domain: the run's.
    """
    run_dir = settings.run_dir(run_id)
    record = next(iter(generation_runs(engine, run_id)), {})
    try:
        plan = shards.read_plan(run_dir)
    except InputError:
        plan = None
    names = [shard.name for shard in plan.shards] if plan else []
    staged = _read_staged(run_dir, names)
    total = Written()
    for written in staged.groups.values():
        total.add(written)
    probed = (
        {}
        if plan is None
        else {shard.kind: read_probe(run_dir / "staged" / shard.name) for shard in reversed(plan.shards)}
    )
    versions = sorted({shard.pool_version for shard in plan.shards if shard.pool_version}) if plan else []
    refused = refused_by_rule(engine, run_id, _REFUSED)
    funnels = _funnels(run_dir, plan, staged.kinds, loaded_by_kind(engine, run_id), record)
    return RunFacts(
        run_id=run_id,
        domain=domain,
        state=_state(plan, funnels, record),
        record=record,
        plan=plan,
        funnels=funnels,
        total=total,
        groups=staged.groups,
        seconds=staged.seconds,
        throughput=_throughput(staged.spans),
        pool_hits=_pool_hits(run_dir, plan),
        probes={kind: probe for kind, probe in probed.items() if probe is not None},
        refusals=[Refusal(rule, texts, samples) for rule, (texts, samples) in refused.items()],
        pools=pool_versions(engine, domain, versions) if versions else [],
        samples=_samples(run_dir, plan),
        data_docs=data_docs.newest_page(settings.data_docs_dir, SUITE, run_id),
        warnings=read_warnings(run_dir),
    )


def _state(plan: Plan | None, funnels: Sequence[Funnel], record: dict[str, Any]) -> State:
    if plan is None:
        return "unplanned"
    if not any(funnel.planned for funnel in funnels):
        return "idle"
    if record.get("state") in ("loaded", "failed"):
        return "loaded" if record["state"] == "loaded" else "failed"
    return "stopped"


def _read_staged(run_dir: Location, names: Sequence[str]) -> _Staged:
    staged = _Staged()
    for part in shards.staged_parts(run_dir, names):
        table = run_files.read_parquet(part, list(_MEASURED))
        seconds = shards.part_seconds(part)
        staged.seconds += seconds
        if not len(table):
            continue
        staged.spans.append((pc.max(table["available_at"]).as_py(), seconds, pc.sum(table["new_tokens"]).as_py()))
        sums = [(name, "sum") for name in ("new_tokens", "steps", "drafted", "accepted", "relaxed")]
        for row in table.group_by(["kind", "group_name"]).aggregate([([], "count_all"), *sums]).to_pylist():
            written = Written(row["count_all"], *(row[f"{name}_sum"] for name, _ in sums))
            staged.groups.setdefault((row["kind"], row["group_name"]), Written()).add(written)
            staged.kinds[row["kind"]] += written.texts
    return staged


def _funnels(
    run_dir: Location, plan: Plan | None, generated: Counter[str], loaded: dict[str, int], record: dict[str, Any]
) -> list[Funnel]:
    if plan is None:
        return []
    passed = _passed(run_dir, plan)
    return [
        Funnel(
            kind=kind,
            seen=told.seen,
            changed=told.changed,
            expired=told.expired,
            skipped={reason: count for reason, count in told.skipped.items() if count},
            planned=told.requests,
            generated=generated[kind],
            passed=None if passed is None else passed[kind],
            loaded=loaded.get(kind, 0) if record.get("state") == "loaded" else None,
        )
        for kind, told in shards.funnels(run_dir, plan).items()
    ]


def _passed(run_dir: Location, plan: Plan) -> Counter[str] | None:
    """Texts that passed validation, by kind, of the shards that are finished; None where none is."""
    finished = [figures for shard in plan.shards if (figures := read_figures(run_dir, shard.name)) is not None]
    if not finished:
        validated = run_dir / "validated.parquet"  # up to release 0.1.0
        return Counter(run_files.read_parquet(validated, ["kind"])["kind"].to_pylist()) if exists(validated) else None
    passed = Counter[str]()
    for figures in finished:
        passed[figures.kind] += figures.passed
    return passed


def _throughput(spans: list[tuple[datetime, float, int]]) -> Throughput | None:
    """Each part's tokens, spread evenly over the seconds that its texts took up to its writing."""
    if not spans:
        return None
    ends = [end.timestamp() for end, _, _ in spans]
    begins = [end - seconds for end, (_, seconds, _) in zip(ends, spans, strict=True)]
    start, duration = min(begins), max(max(ends) - min(begins), 1e-3)
    bins = max(1, min(_BINS, int(duration)))
    width = duration / bins
    made = [0.0] * bins
    for begin, end, (_, seconds, tokens) in zip(begins, ends, spans, strict=True):
        first, last = int((begin - start) / width), min(bins - 1, int((end - start) / width))
        for number in range(first, last + 1):
            shared = min(end, start + (number + 1) * width) - max(begin, start + number * width)
            made[number] += tokens * max(shared, 0.0) / seconds if seconds else tokens / (last - first + 1)
    started_at = datetime.fromtimestamp(start, spans[0][0].tzinfo)
    return Throughput(started_at, width, [tokens / width for tokens in made])


def _pool_hits(run_dir: Location, plan: Plan | None) -> int:
    hits = 0
    for shard in plan.shards if plan else ():
        manifest = shards.read_manifest(run_dir / "staged" / shard.name) if shard.pool_version else None
        hits += manifest.get("texts", 0) - manifest.get("global_pool_texts", 0) if manifest else 0
    return hits


def _samples(run_dir: Location, plan: Plan | None) -> list[dict[str, Any]]:
    """The first texts of each kind."""
    samples: list[dict[str, Any]] = []
    for kind in dict.fromkeys(shard.kind for shard in plan.shards) if plan else ():
        names = [shard.name for shard in plan.shards if shard.kind == kind] if plan else []
        for part in shards.staged_parts(run_dir, names):
            rows = run_files.read_parquet(part).slice(0, _SAMPLES).to_pylist()
            samples += rows
            if rows:
                break
    return samples
