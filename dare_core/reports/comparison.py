"""Relaxed and int8 texts beside strict ones, as one HTML file in the style of the run report."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from dare_core.evaluation.arms import LABELS
from dare_core.evaluation.comparison import ALL, Compared
from dare_core.reports.page import environment
from dare_core.reports.page_charts import Column, Tone, bars
from dare_core.storage.run_files import write_json

#: Figures that are drawn, by key, with what they are called.
_DRAWN: Final = {
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "words": "words",
    "alike": "like strict (cosine)",
    "relaxed_token_rate": "relaxed tokens",
}
_PERCENT: Final = ("relaxed_token_rate", "same_text")
#: Columns of the table of groups.
_TABLE: Final = {
    "texts": "texts", "words": "words", "distinct_1": "distinct-1", "distinct_2": "distinct-2",
    "distinct_3": "distinct-3", "self_bleu": "self-BLEU", "alike": "like strict", "unlike": "like others",
    "same_text": "the same", "relaxed_token_rate": "relaxed tokens",
}  # fmt: skip
#: Prompts of each kind whose texts are shown in full.
_SAMPLES: Final = 6
_TONES: Final[Mapping[str, Tone]] = {"strict": "passed", "relaxed": "dare", "int8": "neutral"}


def write_comparison(path: Path, domain: str, figures: Mapping[str, Any], compared: Sequence[Compared]) -> None:
    """Write the page.

    Args:
        path: file to write.
        domain: whose texts they are.
        figures: of :func:`dare_core.evaluation.comparison.compare`.
        compared: likewise.
    """
    write_json(path, render(domain, figures, compared))


def render(domain: str, figures: Mapping[str, Any], compared: Sequence[Compared]) -> str:
    """The page as text; see :func:`write_comparison`."""
    kinds = [name.removesuffix(f"/{ALL}") for name in figures if name.endswith(f"/{ALL}")]
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            domain=domain,
            headline=headline(figures),
            arms=LABELS,
            written=list(next(iter(figures.values()))),
            prompts=len(compared),
            charts=[(f"{kind}s", _draw(f"{kind}s", figures[f"{kind}/{ALL}"])) for kind in kinds],
            columns=_TABLE,
            groups=[
                (
                    name,
                    [(LABELS[arm], [_shown(key, of_arm[key]) for key in _TABLE]) for arm, of_arm in arms.items()],
                )
                for name, arms in figures.items()
            ],
            samples=[one for kind in kinds for one in _samples([one for one in compared if one.kind == kind])],
            written_at=datetime.now(UTC),
        )
    )


def headline(figures: Mapping[str, Any]) -> str:
    """What the comparison found, in a sentence a kind."""
    said = []
    for name, arms in figures.items():
        kind, _, group = name.partition("/")
        if group == ALL and "relaxed" in arms:
            relaxed, strict = arms["relaxed"], arms["strict"]
            said.append(
                f"Of {relaxed['texts']:,} relaxed {kind} texts {relaxed['same_text']:.0%} are the strict ones word for "
                f"word; their likeness to them is {relaxed['alike']:.2f}, that of texts of different prompts "
                f"{strict['unlike']:.2f}."
            )
    return " ".join(said)


def _draw(noun: str, arms: Mapping[str, Mapping[str, float]]) -> list[Markup]:
    labels, tones = [LABELS[arm] for arm in arms], [_TONES[arm] for arm in arms]
    columns = [
        Column(
            name,
            [of_arm[key] for of_arm in arms.values()],
            [_shown(key, of_arm[key]) for of_arm in arms.values()],
            tones,
            (arms["strict"]["unlike"], "line: other prompts") if key == "alike" else None,
        )
        for key, name in _DRAWN.items()
    ]
    return [bars(f"{noun} by arm", labels, columns[:3]), bars(f"{noun} by arm", labels, columns[3:])]


def _shown(key: str, value: float) -> str:
    if key in _PERCENT:
        return f"{value:.1%}"
    return f"{value:,.0f}" if key == "texts" else f"{value:.1f}" if key == "words" else f"{value:.3f}"


def _samples(compared: Sequence[Compared]) -> list[Compared]:
    """Evenly from the most to the least different."""
    by_difference = sorted(compared, key=lambda one: (one.alike.get("relaxed", 1.0), one.entity_id))
    step = max(1, len(by_difference) // _SAMPLES)
    return by_difference[::step][:_SAMPLES]
