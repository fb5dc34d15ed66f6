"""Great Expectations over staged texts, a shard at a time: rows pass or are quarantined; and over a run's sums.

Expectations of a shard come in two kinds. What must hold of the table (columns, values where they are required, one row
per planned request) fails the run, since nothing may be half loaded. What must hold of a text fails its row alone. How
many rows a run may lose so is judged by the sums over its shards.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from dare_core.config.domains import TextQuality
from dare_core.errors import QualityError
from dare_core.quality import data_docs, metrics
from dare_core.quality.findings import ABSENT, Finding, judge, mark_absent, some
from dare_core.schemas import KNOWLEDGE, QUARANTINE
from dare_core.storage.locations import Location

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation

SUITE: Final = "texts"

_PLANNED: Final = "planned"
#: Columns that are measured; :func:`_measure` says how.
_MEASURED: Final = (
    "characters",
    "words",
    "repeated_ngram_share",
    "printable_share",
    "language_share",
    "echo_share",
    "refusal",
    "own_words",
    "relaxed_share",
)
#: The rule that a run breaks which loses too many texts.
LOST: Final = "texts lost"
#: Rules that a text may break, as quarantine stores them: what :func:`_row_rules` returns, and those before it.
_RULES: Final = (
    "generation", "not_json", "wrong_form", "blank", "length", "token_budget", "repetition", "unprintable", "language",
    "echo", "refusal", "off_topic", "relaxed",
)  # fmt: skip


@dataclass(frozen=True)
class Validation:
    """What came of a shard's texts.

    Attributes:
        passed: the rows that broke no rule, in schema ``KNOWLEDGE``.
        quarantine: one row per broken rule and text, in schema ``QUARANTINE``.
        refused: the rows that broke one, in schema ``KNOWLEDGE``.
    """

    passed: pa.Table
    quarantine: pa.Table
    refused: pa.Table


@dataclass(frozen=True)
class ShardCounts:
    """What came of a shard, for the judgement on its run.

    Attributes:
        shard: its name.
        requests: that it has.
        answered: by a text, or by the failure to write one.
        lost: requests whose text was not written, or refused.
        by_rule: refused texts by rule.
    """

    shard: str
    requests: int
    answered: int
    lost: int
    by_rule: Mapping[str, int]


def validate(
    staged: pa.Table,
    planned_ids: Sequence[str],
    attributes: Mapping[tuple[str, str], str],
    rules: TextQuality,
    run_id: str,
) -> Validation:
    """Check a shard's staged texts.

    Args:
        staged: the texts, in schema ``KNOWLEDGE``.
        planned_ids: request ids of which each must have one row: all that were planned and did not fail in generation.
        attributes: JSON objects by kind and entity id; of an entity without, nothing is asked of its text.
        rules: what a text must keep to.
        run_id: whose texts they are.

    Raises:
        QualityError: columns or values are missing, or the rows are not those of the plan. Says which.
    """
    _require_types(staged)
    planned = frozenset(planned_ids)
    frame = _frame(staged, planned, attributes, rules)
    table_rules = _table_rules(frame, len(planned))
    row_rules = _row_rules(rules) if set(KNOWLEDGE.names) == set(staged.column_names) else {}
    expectations = [*table_rules, *(expectation for expectation, _ in row_rules.values())]
    results = data_docs.check_part(SUITE, frame, expectations, ("request_id",) if row_rules else ()).results
    by_rule = {result.expectation_config.meta["rule"]: result for result in results}

    problems = [
        _explain(rule, result)
        for rule, result in by_rule.items()
        if not result.success and (rule not in row_rules or "unexpected_index_list" not in result.result)
    ]
    if problems:
        problems += _missing(staged, planned)
        raise QualityError(f"the staged texts of run {run_id} cannot be used: {'; '.join(problems)}")

    broken = [
        (row["request_id"], rule, column)
        for rule, (_, column) in row_rules.items()
        for row in by_rule[rule].result.get("unexpected_index_list", ())
    ]
    failing = pa.array({request_id for request_id, _, _ in broken}, pa.string())
    is_failing = pc.is_in(staged["request_id"], failing)
    return Validation(
        passed=staged.filter(pc.invert(is_failing)),
        refused=staged.filter(is_failing),
        quarantine=_quarantine(staged, frame, broken, run_id),
    )


def judge_run(
    counts: Sequence[ShardCounts], max_failing_share: float, docs_dir: Location, run_id: str
) -> list[Finding]:
    """Check the sums over a run's shards, and write the result as Data Docs; doing so again replaces its result.

    Critical are requests without an answer or with several, and a share of texts lost above ``max_failing_share``.

    Args:
        counts: of all shards.
        max_failing_share: of the run's texts.
        docs_dir: where the HTML goes; shared by all runs, several may be judged at once.
        run_id: whose texts they are.
    """
    data_docs.import_great_expectations()
    import great_expectations.expectations as gxe
    import pandas as pd

    # Great Expectations' pages show names of columns as they are: nothing but the name of a rule may be one.
    by_rule = [Counter[str]() for _ in counts]
    for found, each in zip(by_rule, counts, strict=True):
        for rule, number in each.by_rule.items():
            found[rule if re.fullmatch(r"[\w ]+", rule) else "other"] += number
    names = sorted({rule for found in by_rule for rule in found} | set(_RULES))
    rows = [
        {
            "shard": each.shard,
            "requests": each.requests,
            "not answered once": each.requests - each.answered,
            "lost": each.lost,
            **{rule: found[rule] for rule in names},
        }
        for each, found in zip(counts, by_rule, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["shard", "requests", "not answered once", "lost", *names])
    most = int(max_failing_share * sum(each.requests for each in counts))
    expectations: list[Expectation] = [
        gxe.ExpectColumnValuesToBeInSet(
            column="not answered once", value_set=[0], severity="critical", meta={"rule": "one answer to every request"}
        ),
        gxe.ExpectColumnSumToBeBetween(
            column="lost", min_value=0, max_value=most, severity="critical", meta={"rule": LOST}
        ),
        *(
            gxe.ExpectColumnValuesToBeBetween(column=rule, max_value=0, severity="warning", meta={"rule": rule})
            for rule in names
        ),
    ]
    return judge(SUITE, frame, expectations, docs_dir, run_id, ("shard",))


def _require_types(staged: pa.Table) -> None:
    wrong = [
        f"{field.name} is {field.type}, not {KNOWLEDGE.field(field.name).type}"
        for field in staged.schema
        if field.name in KNOWLEDGE.names and field.type != KNOWLEDGE.field(field.name).type
    ]
    if wrong:
        raise QualityError(f"the staged texts have columns of another type: {'; '.join(wrong)}")


def _frame(
    staged: pa.Table, planned: frozenset[str], attributes: Mapping[tuple[str, str], str], rules: TextQuality
) -> "pd.DataFrame":
    """The staged rows with what is measured of them; a table with other columns is left as it is."""
    frame = staged.to_pandas()
    if set(staged.column_names) != set(KNOWLEDGE.names):
        return frame
    columns = ("kind", "entity_id", "text", "prompt", "relaxed", "new_tokens")
    measured = [
        _measure(text or "", prompt or "", attributes.get((kind, entity_id), "{}"), relaxed or 0, tokens or 0, rules)
        for kind, entity_id, text, prompt, relaxed, tokens in zip(
            *(staged[name].to_pylist() for name in columns), strict=True
        )
    ]
    for name, values in zip(
        _MEASURED, zip(*measured, strict=True) if measured else ([],) * len(_MEASURED), strict=True
    ):
        frame[name] = list(values)
    frame[_PLANNED] = [request_id in planned for request_id in staged["request_id"].to_pylist()]
    mark_absent(frame, staged, KNOWLEDGE)
    return frame


def _measure(
    text: str, prompt: str, attributes: str, relaxed: int, tokens: int, rules: TextQuality
) -> tuple[float | str, ...]:
    """What the columns of ``_MEASURED`` hold of one text."""
    return (
        metrics.characters(text),
        metrics.words(text),
        metrics.repeated_ngram_share(text),
        0.0 if "\0" in text else metrics.printable_share(text),  # a NUL can be stored by no warehouse
        1.0 if rules.language == "any" else metrics.language_share(text, rules.language),
        metrics.echo_share(text, prompt),
        metrics.refusal(text, rules.refusals),
        metrics.own_words(text, attributes, rules.language),
        relaxed / tokens if tokens else 0.0,
    )


def _table_rules(frame: "pd.DataFrame", planned: int) -> "list[Expectation]":
    data_docs.import_great_expectations()
    import great_expectations.expectations as gxe

    derived = [name for name in (*_MEASURED, _PLANNED, ABSENT) if name in frame]
    columns = gxe.ExpectTableColumnsToMatchSet(
        column_set=[*KNOWLEDGE.names, *derived], exact_match=True, meta={"rule": "columns"}
    )
    if not derived:
        return [columns]
    return [
        columns,
        gxe.ExpectColumnValuesToBeInSet(column=ABSENT, value_set=[""], meta={"rule": "required values"}),
        gxe.ExpectColumnValuesToBeUnique(column="request_id", meta={"rule": "one row per request"}),
        # Together with uniqueness, these two say that the staged requests are exactly the planned ones, without
        # writing every id into the suite.
        gxe.ExpectColumnValuesToBeInSet(column=_PLANNED, value_set=[True], meta={"rule": "planned requests only"}),
        gxe.ExpectTableRowCountToEqual(value=planned, meta={"rule": "every planned request"}),
    ]


def _row_rules(rules: TextQuality) -> "dict[str, tuple[Expectation, str]]":
    """By the name that quarantine stores: the expectation, and the column that holds what it measured."""
    data_docs.import_great_expectations()
    import great_expectations.expectations as gxe

    def between(rule: str, column: str, low: float | None, high: float | None) -> "tuple[Expectation, str]":
        bounds = {"min_value": low, "max_value": high}
        return gxe.ExpectColumnValuesToBeBetween(
            column=column, **bounds, severity="warning", meta={"rule": rule}
        ), column

    budget = gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A="max_new_tokens",
        column_B="new_tokens",
        or_equal=True,
        severity="warning",
        meta={"rule": "token_budget"},
    )
    refusal = gxe.ExpectColumnValuesToBeInSet(
        column="refusal", value_set=[""], severity="warning", meta={"rule": "refusal"}
    )
    return {
        "blank": between("blank", "words", 1, None),
        "length": between("length", "characters", rules.min_characters, rules.max_characters),
        "token_budget": (budget, "new_tokens"),
        "repetition": between("repetition", "repeated_ngram_share", None, rules.max_repetition),
        "unprintable": between("unprintable", "printable_share", rules.min_printable, None),
        "language": between("language", "language_share", rules.min_language, None),
        "echo": between("echo", "echo_share", None, rules.max_echo),
        "refusal": (refusal, "refusal"),
        "off_topic": between("off_topic", "own_words", rules.min_own_words, None),
        "relaxed": between("relaxed", "relaxed_share", None, rules.max_relaxed),
    }


def _explain(rule: str, result: "ExpectationValidationResult") -> str:
    found: dict[str, Any] = result.result
    if "mismatched" in found.get("details", {}):
        return f"{rule}: {found['details']['mismatched']}"
    if "unexpected_index_list" in found:
        ids = list(dict.fromkeys(str(row["request_id"]) for row in found["unexpected_index_list"]))
        return f"{rule}: {some(ids)}"
    if "observed_value" in found:
        return f"{rule}: {found['observed_value']} rows, not {result.expectation_config.kwargs['value']}"
    return f"{rule}: could not be evaluated"


def _missing(staged: pa.Table, planned: frozenset[str]) -> list[str]:
    if "request_id" not in staged.column_names:
        return []
    missing = sorted(planned.difference(staged["request_id"].to_pylist()))
    return [f"missing: {some(missing)}"] if missing else []


def _quarantine(
    staged: pa.Table, frame: "pd.DataFrame", broken: Sequence[tuple[str, str, str]], run_id: str
) -> pa.Table:
    position = {request_id: row for row, request_id in enumerate(staged["request_id"].to_pylist())}
    taken = staged.take(pa.array([position[request_id] for request_id, _, _ in broken], pa.int64()))
    measured = [frame[column].iloc[position[request_id]] for request_id, _, column in broken]
    now = datetime.now(UTC)
    columns = {
        "rule": [rule for _, rule, _ in broken],
        "run_id": [run_id] * len(broken),
        "value": [f"{value:.3f}" if isinstance(value, float) else str(value) for value in measured],
        "quarantined_at": [now] * len(broken),
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else taken[field.name]
        for field in QUARANTINE
    ]
    return pa.table(arrays, schema=QUARANTINE)
