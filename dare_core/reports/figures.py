"""Figures that are kept as files."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure; the suffix (``.svg``, ``.png``) says in which format. Drawn again, an SVG is the same bytes."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    # Nothing reaches over its axes, and matplotlib names clip areas by the last bit of a layout that differs by chance.
    for artist in figure.findobj():
        artist.set_clip_on(False)
    with mpl.rc_context({"svg.hashsalt": "dare"}):
        figure.savefig(path, dpi=150, facecolor="white", metadata=metadata)
