"""The report of a run as one HTML file that asks for nothing else, and its figures in short as JSON beside it.

<run>/report.html    the page
<run>/report.json    what lists of runs and metrics take from it
"""

import json
import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dare_core.config.settings import Settings
from dare_core.reports.chart_style import COLOURS
from dare_core.reports.facts import Funnel, RunFacts, Written
from dare_core.reports.page_charts import Column, Tone, bars, clock, steps
from dare_core.storage.locations import Location, read_bytes
from dare_core.storage.run_files import write_json

_PAGE: Final = "report.html"
_FIGURES: Final = "report.json"
_GROUPS: Final = 16  # drawn of each kind; the others together make one more row
_NOUNS: Final = {"item": "items", "user": "users"}


def report_path(settings: Settings, run_id: str) -> Location:
    """Where the report of a run is."""
    return settings.run_dir(run_id) / _PAGE


def write_report(settings: Settings, facts: RunFacts) -> Location:
    """Write a run's page and figures, over those that are there."""
    path = report_path(settings, facts.run_id)
    write_json(path.with_name(_FIGURES), json.dumps(figures(facts)))
    write_json(path, render(facts, os.path.relpath(str(settings.data_docs_dir), str(path.parent))))
    return path


def read_figures(settings: Settings, run_id: str) -> dict[str, Any] | None:
    """The figures of a run's report; None while it has none."""
    try:
        content: dict[str, Any] = json.loads(read_bytes(report_path(settings, run_id).with_name(_FIGURES)))
        return content
    except FileNotFoundError:
        return None


def figures(facts: RunFacts) -> dict[str, Any]:
    """A run in numbers; what cannot be told is None."""
    total = facts.total
    return {
        "state": facts.state,
        "headline": headline(facts),
        "precision": facts.plan and facts.plan.decoding.precision,
        "texts": total.texts,
        "tokens": total.tokens,
        "seconds": round(facts.seconds, 3),
        "tokens_per_step": round(total.tokens_per_step, 3) if total.steps else None,
        "relaxed_share": round(total.relaxed_share, 4) if total.tokens else None,
        "quarantined": sum(refusal.texts for refusal in facts.refusals),
        "pool_hits": facts.pool_hits,
        "speedup": None if facts.speedup is None else round(facts.speedup, 2),
        "cost": (facts.record.get("measured") or {}).get("cost"),
    }


def headline(facts: RunFacts) -> str:
    """What the run did, in a sentence or two."""
    total, planned = facts.total, facts.planned
    if facts.state == "unplanned":
        return "The run ended before it was planned, and wrote nothing; the log of the task that failed says why."
    if facts.state == "idle":
        return f"Nothing had to be written for {facts.domain}: no entity lacks valid knowledge. No model was called."
    if not total.texts:
        return f"None of {_count(planned, 'text')} was written; the log of the task that failed says why."
    decoding = f"for {facts.domain} in {clock(facts.seconds)} of decoding, {total.tokens_per_step:.2f} tokens a step"
    if facts.speedup is not None:
        decoding += f", {facts.speedup:.1f} times as fast as plain decoding"
    if facts.state == "loaded":
        refused = planned - facts.record["loaded"]
        loaded = f"{facts.record['loaded']:,} are loaded" + (f", {refused:,} are not" if refused else "")
        return f"Wrote {_count(total.texts, 'text')} {decoding}; {loaded}."
    wrote = f"It had written {total.texts:,} of {_count(planned, 'text')} {decoding}."
    if facts.state == "failed":
        return f"Failed in validation, and loaded nothing. {wrote}"
    return f"Stopped before its texts were loaded. {wrote}"


def render(facts: RunFacts, docs_dir: str) -> str:
    """The page.

    Args:
        facts: of the run.
        docs_dir: the folder of Data Docs as seen from the page's own.
    """
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            facts=facts,
            headline=headline(facts),
            funnels=[(_NOUNS[funnel.kind], _draw_funnel(funnel), funnel) for funnel in facts.funnels],
            groups=[(noun, chart) for kind, noun in _NOUNS.items() if (chart := _draw_groups(facts, kind)) is not None],
            speed=_draw_speed(facts),
            throughput=_draw_throughput(facts),
            refusals=_draw_refusals(facts),
            estimate=_estimate(facts),
            data_docs=f"{docs_dir}/{facts.data_docs}" if facts.data_docs else None,
            written_at=datetime.now(UTC),
            shards=len(facts.plan.shards) if facts.plan else 0,
        )
    )


@cache
def environment() -> Environment:
    """Templates of this folder; everything put into one is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "minute": lambda moment: f"{moment:%Y-%m-%d %H:%M} UTC"}
    environment.globals["colours"] = COLOURS
    return environment


def _draw_funnel(funnel: Funnel) -> Markup:
    stages: list[tuple[str, int | None, Tone]] = [
        ("seen", funnel.seen, "neutral"),
        ("changed", funnel.changed, "neutral"),
        ("expired", funnel.expired, "neutral"),
        ("planned", funnel.planned, "dare"),
        ("generated", funnel.generated, "dare"),
        ("passed validation", funnel.passed, "passed"),
        ("loaded", funnel.loaded, "passed"),
    ]
    known = [(name, count, tone) for name, count, tone in stages if count is not None]
    names, counts, tones = zip(*known, strict=True)
    return bars(
        f"{_NOUNS[funnel.kind]} by stage", names, [Column("", counts, [f"{count:,}" for count in counts], tones)]
    )


def _draw_groups(facts: RunFacts, kind: str) -> Markup | None:
    groups = {group: written for (of, group), written in facts.groups.items() if of == kind}
    if not groups:
        return None
    largest = sorted(groups, key=lambda group: (-groups[group].tokens, group))
    rows: list[tuple[str, Written]] = [(group, groups[group]) for group in largest[:_GROUPS]]
    if others := largest[_GROUPS:]:
        together = Written()
        for group in others:
            together.add(groups[group])
        rows.append((f"{len(others)} other groups", together))
    tones: list[Tone] = ["dare"] * len(rows)
    per_step = [written.tokens_per_step for _, written in rows]
    relaxed = [100 * written.relaxed_share for _, written in rows]
    return bars(
        f"{_NOUNS[kind]} by group",
        [label for label, _ in rows],
        [
            Column("tokens per step", per_step, [f"{value:.2f}" for value in per_step], tones, (1.0, "line: plain")),
            Column("relaxed tokens", relaxed, [f"{value:.1f}%" for value in relaxed], ["lost"] * len(rows)),
            Column("texts", [w.texts for _, w in rows], [f"{w.texts:,}" for _, w in rows], ["neutral"] * len(rows)),
        ],
    )


def _draw_speed(facts: RunFacts) -> Markup | None:
    if not facts.probes:
        return None
    labels: list[str] = []
    values: list[float] = []
    tones: list[Tone] = []
    for kind, probe in facts.probes.items():
        labels += [f"{_NOUNS[kind]}, DARE", f"{_NOUNS[kind]}, plain"]
        values += [probe.tokens / probe.seconds, probe.plain_tokens_per_second]
        tones += ["dare", "plain"]
    texts = [f"{value:,.1f}" for value in values]
    return bars("tokens per second", labels, [Column("tokens per second", values, texts, tones)])


def _draw_throughput(facts: RunFacts) -> Markup | None:
    if (throughput := facts.throughput) is None:
        return None
    plain = [probe.plain_tokens_per_second for probe in facts.probes.values()]
    mark = (sum(plain) / len(plain), "plain decoding, probed") if plain else None
    return steps(
        "Tokens per second over time", "tokens per second", throughput.bin_seconds, throughput.tokens_per_second, mark
    )


def _draw_refusals(facts: RunFacts) -> Markup | None:
    if not facts.refusals:
        return None
    counts = [refusal.texts for refusal in facts.refusals]
    column = Column("", counts, [f"{count:,}" for count in counts], ["lost"] * len(counts))
    return bars("texts by rule", [refusal.rule for refusal in facts.refusals], [column])


def _estimate(facts: RunFacts) -> list[tuple[str, str, str, str]]:
    """Rows of name, estimated, measured, and measured as a share of estimated; none where nothing was estimated."""
    told = facts.plan.estimate.model_dump() if facts.plan else {}
    measured = {
        "tokens": facts.total.tokens,
        "seconds": facts.seconds,
        "tokens_per_second": facts.tokens_per_second,
        "cost": (facts.record.get("measured") or {}).get("cost"),
    }
    return [
        (
            name.replace("_", " "),
            _figure(told[name]),
            _figure(was),
            f"{was / told[name]:.0%}" if was and told[name] else "",
        )
        for name, was in measured.items()
        if told.get(name) is not None
    ]


def _figure(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
