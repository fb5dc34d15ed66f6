"""Great Expectations over the source tables as a run pulled them: entities with their attributes.

Spark counts (``spark_jobs/figures.py``), Great Expectations judges the counts: so many entities, so many of them that
fail a rule, a few of their ids. Memory does not grow with the tables.

A title that looks like a command to the model stays: it is data, encoded so that it cannot become a control token. It
is reported, because somebody tries.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from dare_core.config.domains import Bound, Domain, EntityTable
from dare_core.quality import data_docs
from dare_core.quality.findings import Finding, bounded, judge
from dare_core.schemas import Kind
from dare_core.storage.locations import Location

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

#: The pulled table has the columns of schema ``PULLED``, and no others.
COLUMNS: Final = "columns"
COMMANDS: Final = "titles that look like a command"
_FOUND: Final = "found"


def required(kind: Kind) -> str:
    """The rule that no value is missing where schema ``PULLED`` requires one."""
    return f"required values of {kind}s"


def unique(kind: Kind) -> str:
    """The rule that no entity is there twice."""
    return f"one row per {kind}"


def coverage(kind: Kind, attribute: str) -> str:
    """The rule that entities have a value in an attribute."""
    return f"{kind}s with a value in {attribute}"


def described(domain: Domain, kind: Kind) -> tuple[str, ...]:
    """What is known of an entity besides its history: keys of its attributes."""
    spec: EntityTable = domain.source.items if kind == "item" else domain.source.users
    return (*(("title",) if spec.title else ()), *spec.attributes)


@dataclass(frozen=True)
class Figure:
    """What was counted for a rule; see ``SOURCE_FIGURE``."""

    entities: int
    failing: int
    examples: list[str]

    @property
    def failing_share(self) -> float:
        return self.failing / self.entities

    @property
    def passing_share(self) -> float:
        return (self.entities - self.failing) / self.entities

    @property
    def words(self) -> str:
        """For a page and a log, without markup."""
        named = [*map(html.escape, self.examples), *(["…"] if self.failing > len(self.examples) else [])]
        return f"{self.failing} of {self.entities} ({', '.join(named)})"


def check_source(figures: pa.Table, domain: Domain, kind: Kind, docs_dir: Location, run_id: str) -> list[Finding]:
    """Check what was counted of the pulled entities of one kind, and write the result as Data Docs.

    Critical are another schema, a missing value where one is required, and an entity that is there twice. What is bound
    by the domain's ``[quality.source]``: how many entities lack an attribute, and how many titles look like a command.

    Args:
        figures: in schema ``SOURCE_FIGURE``; one of each rule, of at least one entity.
        domain: names the attributes.
        kind: whose entities they are.
        docs_dir: where the HTML goes.
        run_id: that pulled them.
    """
    rows = figures.to_pylist()
    counted = {row.pop("rule"): Figure(**row) for row in rows}
    import pandas as pd  # type: ignore[import-untyped]

    covering = {coverage(kind, name) for name in described(domain, kind)}
    shares = {
        rule: figure.passing_share if rule in covering else figure.failing_share for rule, figure in counted.items()
    }
    failed = "; ".join(f"{rule}: {figure.words}" for rule, figure in counted.items() if figure.failing)
    rules = _rules(counted, domain, kind)
    found = judge(
        f"source_{kind}", pd.DataFrame([{**shares, _FOUND: failed}]), rules, docs_dir, run_id, index_columns=(_FOUND,)
    )
    return [_in_figures(finding, counted[finding.rule], _bound(finding.rule, domain, covering)) for finding in found]


def _in_figures(finding: Finding, figure: Figure, bound: Bound | None) -> Finding:
    limit = bound and (bound.fail if finding.severity == "critical" else bound.warn)
    return replace(finding, found=figure.words + ("" if limit is None else f", bound {limit:g}"))


def _bound(rule: str, domain: Domain, covering: set[str]) -> Bound | None:
    """What the domain allows of a rule; None: nothing."""
    bounds = domain.quality.source
    return bounds.attribute_coverage if rule in covering else bounds.suspicious_titles if rule == COMMANDS else None


def _rules(figures: Mapping[str, Figure], domain: Domain, kind: Kind) -> "list[Expectation]":
    """Of a frame with a row, in which each rule has a column of its name: the share that passes or fails."""
    data_docs.import_great_expectations()
    import great_expectations.expectations as gxe

    def at_most(rule: str, share: float, **how: Any) -> "Expectation":
        return gxe.ExpectColumnValuesToBeBetween(column=rule, max_value=share, **how)

    def at_least(rule: str, share: float, **how: Any) -> "Expectation":
        return gxe.ExpectColumnValuesToBeBetween(column=rule, min_value=share, **how)

    bounds, names = domain.quality.source, described(domain, kind)
    rules = [
        at_most(rule, 0, severity="critical", meta={"rule": rule}) for rule in (COLUMNS, required(kind), unique(kind))
    ]
    few = figures[COLUMNS].entities < bounds.coverage_min_rows  # of a few changed rows a share says little
    for name in () if few else names:
        rule = coverage(kind, name)
        rules += bounded(rule, bounds.attribute_coverage, lambda share, rule=rule, **how: at_least(rule, share, **how))
    if "title" in names:
        rules += bounded(COMMANDS, bounds.suspicious_titles, lambda share, **how: at_most(COMMANDS, share, **how))
    return rules
