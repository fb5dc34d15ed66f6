"""Suites over many rows at once: each expectation has a bound that warns, one that ends the run, or both."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa

from dare_core.config.domains import Bound
from dare_core.errors import QualityError
from dare_core.quality import data_docs
from dare_core.storage.locations import Location, matching, read_bytes

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation

#: Makes an expectation of a bound: called with the bound, and with ``severity`` and ``meta`` by name.
Maker = Callable[..., "Expectation"]
Severity = Literal["warning", "critical"]

#: Column that :func:`mark_absent` adds.
ABSENT: Final = "absent"
_NAMED: Final = 3


@dataclass(frozen=True)
class Finding:
    """An expectation that was not met: which one, how much it weighs, and what was found instead, in words."""

    rule: str
    severity: Severity
    found: str

    @property
    def sentence(self) -> str:
        """For a log or a report."""
        return f"{self.rule}: {self.found}"


def bounded(rule: str, bound: Bound, make: Maker) -> "list[Expectation]":
    """The expectations of a bound: of those that it sets, the one that ends the run first."""
    severities: list[tuple[Severity, float | None]] = [("critical", bound.fail), ("warning", bound.warn)]
    return [
        make(value, severity=severity, meta={"rule": rule, "bound": value})
        for severity, value in severities
        if value is not None
    ]


def judge(
    suite: str,
    frame: "pd.DataFrame",
    expectations: "Sequence[Expectation]",
    docs_dir: Location,
    run_id: str,
    index_columns: Sequence[str],
) -> list[Finding]:
    """Check a frame, write the result as Data Docs, and say what was not met: each rule once, by its worst.

    Every expectation has ``rule`` in its ``meta``; arguments are those of :func:`dare_core.quality.data_docs.check`.
    """
    results = data_docs.check(suite, frame, expectations, docs_dir, run_id, index_columns).results
    worst: dict[str, Finding] = {}
    for result in results:
        config = result.expectation_config
        if not result.success:
            found = Finding(config.meta["rule"], _severity(config.severity), _found(result, index_columns))
            if worst.get(found.rule, found).severity != "critical" or found.severity == "critical":
                worst[found.rule] = found
    return list(worst.values())


def require(findings: Iterable[Finding], what: str, docs_dir: Location) -> list[str]:
    """The warnings, in words.

    Args:
        findings: of a suite.
        what: was checked, for the error.
        docs_dir: where it can be looked at.

    Raises:
        QualityError: one of the findings is critical.
    """
    findings = list(findings)
    if critical := [finding.sentence for finding in findings if finding.severity == "critical"]:
        raise QualityError(f"{what} cannot be used: {'; '.join(critical)}; see {data_docs.index(docs_dir)}")
    return [finding.sentence for finding in findings]


def some(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def mark_absent(frame: "pd.DataFrame", table: pa.Table, schema: pa.Schema) -> None:
    """Add column :data:`ABSENT` to a table's frame: which columns lack a value that the schema requires."""
    frame[ABSENT] = ""
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            frame.loc[frame[field.name].isna(), ABSENT] += f" {field.name}"


def warnings_path(run_dir: Location, suite: str) -> Location:
    """Where a run keeps what a suite's checks warned of, a JSON list of sentences."""
    return run_dir / f"warnings-{suite}.json"


def read_warnings(run_dir: Location) -> list[str]:
    """What the checks of a run warned of so far."""
    return [sentence for path in matching(run_dir, "warnings-*.json") for sentence in json.loads(read_bytes(path))]


def _severity(severity: Any) -> Severity:
    return "critical" if getattr(severity, "value", severity) == "critical" else "warning"


def _found(result: "ExpectationValidationResult", index_columns: Sequence[str]) -> str:
    found: dict[str, Any] = result.result
    bound = result.expectation_config.meta.get("bound")
    limit = "" if bound is None else f", bound {bound:g}"
    if "mismatched" in found.get("details", {}):
        return str(found["details"]["mismatched"])
    if "unexpected_index_list" in found:
        rows = found["unexpected_index_list"]
        named = list(dict.fromkeys(" ".join(str(row[name]) for name in index_columns) for row in rows))
        return f"{len(rows)} of {found['element_count']} ({some(named)}){limit}"
    if "observed_value" in found:
        kwargs = result.expectation_config.kwargs
        low, high = kwargs.get("min_value"), kwargs.get("max_value")
        return f"{_number(found['observed_value'])}, expected {_number(low)} to {_number(high)}{limit}"
    return "could not be evaluated"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
