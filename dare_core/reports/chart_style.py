"""How every chart looks, and how it is kept: as a file, or inside a page whose light or dark colours it takes."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours by what they stand for; a page has a variable for each, which it sets anew in the dark.
COLOURS: Final = {
    "ink": "#1d2329",
    "soft": "#5b6670",
    "line": "#dde2e6",
    "dare": "#0f8a5f",
    "plain": "#9aa3aa",
    "passed": "#2878b5",
    "lost": "#d9822b",
    "neutral": "#c3ccd3",
}
#: The id of an artist, followed by what a page says when the pointer rests on it.
HOVER: Final = "hover:"

_STYLE: Final[dict[Any, Any]] = {
    "axes.titlesize": "medium",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
    "grid.color": COLOURS["line"],
    "text.parse_math": False,  # what stands between two $ is a name like any other
    "svg.hashsalt": "dare",
}
_SVG: Final = "{http://www.w3.org/2000/svg}"
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_VARIABLES: Final = {colour: f"var(--{name})" for name, colour in COLOURS.items()}


@contextmanager
def style(font_size: float = 9) -> Iterator[None]:
    """Draw in our style; also a decorator of functions that draw."""
    import matplotlib as mpl

    with mpl.rc_context({**_STYLE, "font.size": font_size}):
        yield


@style()
def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure; the suffix (``.svg``, ``.png``) says in which format. Drawn again, an SVG is the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    _unclip(figure)
    figure.savefig(path, dpi=150, facecolor="white", metadata=metadata)


def inline_svg(figure: "Figure", said: str) -> Markup:
    """A figure as SVG to stand in a page: outlines and texts alone, in the page's font and colours.

    Texts stay texts, escaped. The same figure gives the same bytes. Markers are not drawn, ticks among them.

    Args:
        figure: 72 pixels an inch; drawn in :func:`style`, and still in it.
        said: what a screen reader reads instead.
    """
    import matplotlib as mpl

    _unclip(figure)
    file = StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a page has more fonts
        figure.savefig(file, format="svg", transparent=True)
    # Written by matplotlib just now, so it holds no entities.
    root = ElementTree.fromstring(_NOT_XML.sub(" ", file.getvalue()))  # noqa: S314
    drawn = Markup("").join(_shape(group, shape) for group in root.iter(f"{_SVG}g") for shape in group)
    width, height = figure.get_size_inches() * 72
    return Markup(
        '<svg viewBox="0 0 {0:.0f} {1:.0f}" style="max-width:{0:.0f}px" role="img" aria-label="{2}">{3}</svg>'
    ).format(width, height, said, drawn)


def _shape(group: ElementTree.Element, shape: ElementTree.Element) -> Markup:
    declared = dict(part.split(": ", 1) for part in shape.get("style", "").split("; ") if part)
    declared.pop("font-family", None)
    if declared == {"fill": "none"}:
        return Markup()
    look = "; ".join(f"{name}: {_VARIABLES.get(value, value)}" for name, value in declared.items())
    if shape.tag == f"{_SVG}path":
        return Markup('<path d="{}" style="{}"/>').format(" ".join(shape.get("d", "").split()), look)
    if shape.tag == f"{_SVG}text":
        hover = group.get("id", "")
        title = Markup("<title>{}</title>").format(hover.removeprefix(HOVER)) if hover.startswith(HOVER) else ""
        return Markup('<text x="{}" y="{}" style="{}">{}{}</text>').format(
            shape.get("x"), shape.get("y"), look, shape.text, title
        )
    return Markup()


def _unclip(figure: "Figure") -> None:
    # Nothing reaches over its axes, and matplotlib names clip areas by the last bit of a layout that differs by chance.
    for artist in figure.findobj():
        artist.set_clip_on(False)
