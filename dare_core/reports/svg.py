"""Charts as inline SVG: text that a screen reader can read, colours that follow the page's light or dark scheme.

Everything written into a chart is escaped here, so a film's title may stand in it as it is. The same figures give the
same bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from markupsafe import Markup

#: Names of CSS classes that the page colours.
Tone = Literal["dare", "plain", "passed", "lost", "neutral"]

_ROW: Final = 24
_LABEL: Final = 170
_COLUMN: Final = 300
_VALUE: Final = 74  # room for the figure behind a bar
_LABEL_CHARACTERS: Final = 25
_CHART: Final = (720, 220)  # width, height
_MARGIN: Final = (52, 14, 28, 26)  # left, right, bottom, top


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


def bars(title: str, labels: Sequence[str], columns: Sequence[Column]) -> Markup:
    """Horizontal bars: a row per label, and beside each other a column per figure, each on a scale of its own."""
    head = 22 if any(column.name or column.mark for column in columns) else 4
    height, width = head + _ROW * len(labels) + 4, _LABEL + _COLUMN * len(columns)
    drawn = [_text(0, head + _ROW * row + 16, _short(label), title=label) for row, label in enumerate(labels)]
    for number, column in enumerate(columns):
        left, most = _LABEL + _COLUMN * number, max([*column.values, column.mark[0] if column.mark else 0.0, 1e-12])
        scale = (_COLUMN - _VALUE) / most
        if column.name:
            drawn.append(_text(left, 13, column.name, "head"))
        for row, (value, text, tone) in enumerate(zip(column.values, column.texts, column.tones, strict=True)):
            top, length = head + _ROW * row, max(value * scale, 1.5 if value else 0)
            drawn.append(
                Markup(
                    '<rect class="{}" x="{}" y="{}" width="{:.1f}" height="16" rx="2"><title>{}</title></rect>'
                ).format(tone, left, top + 3, length, f"{labels[row]}: {text}")
            )
            drawn.append(_text(left + length + 6, top + 16, text, "value"))
        if column.mark:
            at = left + column.mark[0] * scale
            drawn.append(
                Markup('<line class="mark" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
                    at, head - 2, height - 2
                )
            )
            drawn.append(
                _text(
                    at + 4 if not column.name else left + _COLUMN - 12,
                    13,
                    column.mark[1],
                    "mark-name",
                    "start" if not column.name else "end",
                )
            )
    said = "; ".join(
        f"{label}: {', '.join(f'{column.name} {column.texts[row]}'.strip() for column in columns)}"
        for row, label in enumerate(labels)
    )
    return _svg(width, height, title, said, drawn)


def steps(title: str, unit: str, bin_seconds: float, values: Sequence[float], mark: tuple[float, str] | None) -> Markup:
    """A rate over time, constant within each of ``values``' equal bins, from second 0 on."""
    (width, height), (left, right, bottom, top) = _CHART, _MARGIN
    duration, most = bin_seconds * len(values), max([*values, mark[0] if mark else 0.0, 1e-12])
    ticks = _ticks(most)
    across, up = (width - left - right) / duration, (height - top - bottom) / max(most, ticks[-1])
    floor = height - bottom
    drawn: list[Markup] = [_text(left, 13, unit, "head")]
    for tick in ticks:
        drawn.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                left, width - right, y=floor - tick * up
            )
        )
        drawn.append(_text(left - 8, floor - tick * up + 4, f"{tick:,g}", "tick", "end"))
    for tick in _ticks(duration):
        if tick <= duration:
            drawn.append(_text(left + tick * across, height - 10, clock(tick), "tick", "middle"))
    corners = [f"{left},{floor}"]
    for number, value in enumerate(values):
        begin, end, y = (
            left + number * bin_seconds * across,
            left + (number + 1) * bin_seconds * across,
            floor - value * up,
        )
        corners += [f"{begin:.1f},{y:.1f}", f"{end:.1f},{y:.1f}"]
    corners.append(f"{width - right},{floor}")
    drawn.append(Markup('<polygon class="dare area" points="{}"/>').format(" ".join(corners)))
    if mark:
        y = floor - mark[0] * up
        drawn.append(
            Markup('<line class="mark" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(left, width - right, y=y)
        )
        drawn.append(_text(width - right, y - 5, mark[1], "mark-name", "end"))
    said = f"highest {max(values):,.1f}, lowest {min(values):,.1f}, over {clock(duration)}"
    return _svg(width, height, title, said, drawn)


def clock(seconds: float) -> str:
    """A duration for reading: 40 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to about ``most``, about four of them."""
    raw = most / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(step * number, 12) for number in range(math.ceil(most / step - 1e-9) + 1)]


def _short(label: str) -> str:
    return label if len(label) <= _LABEL_CHARACTERS else label[: _LABEL_CHARACTERS - 1] + "…"


def _text(x: float, y: float, content: str, role: str = "label", anchor: str = "start", title: str = "") -> Markup:
    hover = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}{}</text>').format(
        role, x, y, anchor, content, hover
    )


def _svg(width: int, height: int, title: str, said: str, drawn: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="{}">{}</svg>').format(
        width, height, width, f"{title}. {said}", Markup("").join(drawn)
    )
