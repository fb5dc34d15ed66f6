"""Great Expectations over the source tables as a run pulled them: entities with their attributes.

A title that looks like a command to the model stays: it is data, encoded so that it cannot become a control token. It
is reported, because somebody tries.
"""

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from dare_core.config.domains import Domain, EntityTable
from dare_core.quality import data_docs
from dare_core.quality.findings import ABSENT, Finding, bounded, judge, mark_absent
from dare_core.quality.metrics import injection
from dare_core.schemas import PULLED, Kind

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from great_expectations.expectations.expectation import Expectation

#: A source's column may be called like one of the frame's.
_ATTRIBUTE: Final = "attribute "
_MARKER: Final = "injection_marker"


def check_source(pulled: pa.Table, domain: Domain, kind: Kind, docs_dir: Path, run_id: str) -> list[Finding]:
    """Check what was pulled of one kind, and write the result as Data Docs.

    Critical are another schema, a missing value where one is required, and an entity that is there twice. What is bound
    by the domain's ``[quality.source]``: how many entities lack an attribute, and how many titles look like a command.

    Args:
        pulled: in schema ``PULLED``.
        domain: names the attributes.
        kind: whose entities they are.
        docs_dir: where the HTML goes.
        run_id: that pulled them.
    """
    spec: EntityTable = domain.source.items if kind == "item" else domain.source.users
    names = (*(("title",) if spec.title else ()), *spec.attributes)
    frame = _frame(pulled, names)
    rules = _rules(frame, domain, kind, names)
    return judge(f"source_{kind}", frame, rules, docs_dir, run_id, ("entity_id",))


def _frame(pulled: pa.Table, names: tuple[str, ...]) -> "pd.DataFrame":
    frame = pulled.to_pandas()
    attributes = [json.loads(row) for row in pulled["attributes"].to_pylist()]
    for name in names:
        frame[_ATTRIBUTE + name] = [_present(row.get(name)) for row in attributes]
    frame[_MARKER] = [injection(str(row.get("title") or "")) for row in attributes]
    mark_absent(frame, pulled, PULLED)
    frame["entity_id"] = [html.escape(entity_id or "") for entity_id in pulled["entity_id"].to_pylist()]
    return frame.drop(columns="attributes")  # histories would make the frame large, and nothing is asked of them


def _present(value: Any) -> str | None:
    """Whether there is a value: a null is what Great Expectations counts."""
    return None if value in (None, "", []) else "there"


def _rules(frame: "pd.DataFrame", domain: Domain, kind: Kind, names: tuple[str, ...]) -> "list[Expectation]":
    data_docs.import_great_expectations()
    import great_expectations.expectations as gxe

    bounds = domain.quality.source
    derived = [_ATTRIBUTE + name for name in names] + [_MARKER, ABSENT]
    columns = [name for name in PULLED.names if name != "attributes"] + derived
    critical: dict[str, Any] = {"severity": "critical"}
    rules = [
        gxe.ExpectTableColumnsToMatchSet(column_set=columns, exact_match=True, meta={"rule": "columns"}, **critical),
        gxe.ExpectColumnValuesToBeInSet(
            column=ABSENT, value_set=[""], meta={"rule": f"required values of {kind}s"}, **critical
        ),
        gxe.ExpectColumnValuesToBeUnique(column="entity_id", meta={"rule": f"one row per {kind}"}, **critical),
    ]
    for name in names if len(frame) >= bounds.coverage_min_rows else ():  # of a few changed rows a share says little
        rules += bounded(
            f"{kind}s with a value in {name}",
            bounds.attribute_coverage,
            lambda bound, name=name, **how: gxe.ExpectColumnValuesToNotBeNull(
                column=_ATTRIBUTE + name, mostly=bound, **how
            ),
        )
    if "title" in names:
        rules += bounded(
            "titles that look like a command",
            bounds.suspicious_titles,
            lambda bound, **how: gxe.ExpectColumnValuesToBeInSet(
                column=_MARKER, value_set=[""], mostly=1 - bound, **how
            ),
        )
    return rules
