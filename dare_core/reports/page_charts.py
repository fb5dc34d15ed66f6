"""Charts inside pages: text that a screen reader can read, colours that follow the page's light or dark scheme.

Everything written into a chart is escaped, so a film's title may stand in it as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from markupsafe import Markup

from dare_core.reports.chart_style import COLOURS, HOVER, inline_svg, style

#: Names of colours that the page sets.
Tone = Literal["dare", "plain", "passed", "lost", "neutral"]

#: Pixels.
_PER_INCH: Final = 72
_ROW: Final = 24
_HEAD: Final = 22
_LABEL: Final = 170
_COLUMN: Final = 300
_GAP: Final = 12  # between columns
_BAR: Final = 226  # the longest; its figure stands behind it
_STEPS: Final = (720, 220)  # width, height
_MARGIN: Final = (52, 14, 28, 26)  # left, right, bottom, top
_LABEL_CHARACTERS: Final = 25


@dataclass(frozen=True)
class Column:
    """One figure of every row, drawn as bars from a common zero.

    Attributes:
        name: above the bars; may be empty.
        values: one a row, none negative.
        texts: what stands behind each bar.
        tones: each bar's colour.
        mark: a value worth comparing with, drawn as a line, and its name.
    """

    name: str
    values: Sequence[float]
    texts: Sequence[str]
    tones: Sequence[Tone]
    mark: tuple[float, str] | None = None


@style(font_size=12.5)
def bars(title: str, labels: Sequence[str], columns: Sequence[Column]) -> Markup:
    """Horizontal bars: a row per label, and beside each other a column per figure, each on a scale of its own."""
    from matplotlib.figure import Figure

    head = _HEAD if any(column.name or column.mark for column in columns) else 4
    width, height = _LABEL + _COLUMN * len(columns), head + _ROW * len(labels) + 4
    figure = Figure(figsize=(width / _PER_INCH, height / _PER_INCH))
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    figure.subplots_adjust(
        _LABEL / width, 4 / height, 1 - _GAP / width, 1 - head / height, wspace=_GAP / (_COLUMN - _GAP)
    )
    for axes, column in zip(panels, columns, strict=True):
        most = max([*column.values, column.mark[0] if column.mark else 0.0, 1e-12])
        visible = [max(value, most * 1.5 / _BAR) if value else 0.0 for value in column.values]
        drawn = axes.barh(range(len(labels)), visible, 16 / _ROW, color=[COLOURS[tone] for tone in column.tones])
        axes.bar_label(drawn, list(column.texts), padding=6)
        axes.set_xlim(0, most * (_COLUMN - _GAP) / _BAR)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.set_title(column.name, loc="left", color=COLOURS["soft"])
        if column.mark:
            axes.axvline(column.mark[0], color=COLOURS["soft"], linestyle="--", linewidth=1.3)
            axes.set_title(column.mark[1], loc="right", color=COLOURS["soft"])
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    panels[0].set_yticks(range(len(labels)), [_short(label) for label in labels], ha="left")
    for axes in panels:
        axes.tick_params(axis="y", length=0, pad=_LABEL)
    for shown, label in zip(panels[0].get_yticklabels(), labels, strict=True):
        shown.set_gid(f"{HOVER}{label}")
    figures = (
        ", ".join(f"{column.name} {column.texts[row]}".strip() for column in columns) for row in range(len(labels))
    )
    return inline_svg(figure, f"{title}. " + "; ".join(map(": ".join, zip(labels, figures, strict=True))))


@style(font_size=12.5)
def steps(title: str, unit: str, bin_seconds: float, values: Sequence[float], mark: tuple[float, str] | None) -> Markup:
    """A rate over time, constant within each of ``values``' equal bins, from second 0 on."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    (width, height), (left, right, bottom, top) = _STEPS, _MARGIN
    figure = Figure(figsize=(width / _PER_INCH, height / _PER_INCH))
    axes = figure.subplots()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    edges = [bin_seconds * number for number in range(len(values) + 1)]
    axes.stairs(values, edges, fill=True, color=COLOURS["dare"], alpha=0.35)
    axes.stairs(values, edges, color=COLOURS["dare"], linewidth=1.2)
    round_numbers = MaxNLocator(4, steps=[1, 2, 5, 10])
    highest = round_numbers.tick_values(0, max([*values, mark[0] if mark else 0.0, 1e-12]))[-1]
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, highest)
    axes.xaxis.set_major_locator(round_numbers)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda second, _: clock(second))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.tick_params(length=0, pad=8, labelcolor=COLOURS["soft"])
    axes.grid(axis="y")
    axes.spines[:].set_visible(False)
    axes.set_title(unit, loc="left", color=COLOURS["soft"])
    if mark:
        axes.axhline(mark[0], color=COLOURS["soft"], linestyle="--", linewidth=1.3)
        axes.text(edges[-1], mark[0], mark[1], ha="right", va="bottom", color=COLOURS["soft"])
    said = f"highest {max(values):,.1f}, lowest {min(values):,.1f}, over {clock(edges[-1])}"
    return inline_svg(figure, f"{title}. {said}")


def clock(seconds: float) -> str:
    """A duration for reading: 40 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def _short(label: str) -> str:
    line = " ".join(label.split())
    return line if len(line) <= _LABEL_CHARACTERS else line[: _LABEL_CHARACTERS - 1] + "…"
