"""Draw docs/architecture.svg from what the code imports: each room, and the arrows that no other arrow implies.

Rows are the layers of import-linter's contracts in pyproject.toml. ``--check`` draws nothing and fails where the
drawing is out of date.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path
from typing import Final

import grimp
import matplotlib as mpl

mpl.use("Agg")
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dare_core.reports.chart_style import save_figure

PROJECT: Final = Path(__file__).resolve().parent.parent
DRAWING: Final = PROJECT / "docs" / "architecture.svg"
LIBRARY: Final = "dare_core"
WIDTH, HEIGHT, GAP = 2.0, 0.5, 0.6


def layers() -> list[list[str]]:
    """Rooms by layer, the highest first: packages, and in the library's place its own rooms."""
    tool = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    found = {
        tuple(each.get("containers", ())): each["layers"] for each in tool["contracts"] if each["type"] == "layers"
    }
    packages, rooms = (
        [[name.strip() for name in layer.split("|")] for layer in found[containers]] for containers in ((), (LIBRARY,))
    )
    inner = [[f"{LIBRARY}.{room}" for room in layer] for layer in rooms]
    return [layer for layer in packages if layer != [LIBRARY]] + inner


def arrows(rooms: list[str]) -> set[tuple[str, str]]:
    """Which room imports which, less what follows from the others."""
    graph = grimp.build_graph(*{room.partition(".")[0] for room in rooms})
    of_module = {
        module: room for room in rooms for module in graph.modules if module == room or module.startswith(f"{room}.")
    }
    imports: dict[str, set[str]] = {room: set() for room in rooms}
    for module, room in of_module.items():
        targets = {of_module[name] for name in graph.find_modules_directly_imported_by(module) if name in of_module}
        imports[room] |= targets - {room}

    def reached(room: str) -> set[str]:
        return imports[room].union(*map(reached, imports[room]))

    return {
        (room, target)
        for room, targets in imports.items()
        for target in targets
        if not any(target in reached(other) for other in targets - {target})
    }


def draw(rows: list[list[str]], found: set[tuple[str, str]], path: Path) -> None:
    """One box a room, one row a layer."""
    figure = Figure(figsize=(7.5, 0.75 * len(rows)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    place: dict[str, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        for column, room in enumerate(row):
            aside = 0.9 * (-1) ** depth if len(row) == 1 else 0.0  # so that arrows which pass a room can be told apart
            place[room] = (column - (len(row) - 1) / 2) * (WIDTH + GAP) + aside, -depth * 1.1
    axes.set_xlim(-6.8, 6.8)
    axes.set_ylim(-len(rows) * 1.1 + 0.5, 0.6)
    depth_of = {room: depth for depth, row in enumerate(rows) for room in row}
    for room, target in sorted(found):
        (x, y), (to_x, to_y) = place[room], place[target]
        bend = 0.0 if depth_of[target] - depth_of[room] <= 1 else 0.35 if x >= 0 else -0.35
        axes.add_patch(
            FancyArrowPatch(
                (x, y - HEIGHT / 2),
                (to_x, to_y + HEIGHT / 2),
                arrowstyle="-|>",
                mutation_scale=9,
                connectionstyle=f"arc3,rad={bend}",
                color="#8a8f98",
                linewidth=0.9,
            )
        )
    for room, (x, y) in place.items():
        inner = room.startswith(f"{LIBRARY}.")
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor="#eef3fb" if inner else "#fdf1df",
            edgecolor="#5b6b8c" if inner else "#b07d2b",
        )
        axes.add_patch(box)
        axes.text(x, y, room.removeprefix(f"{LIBRARY}."), ha="center", va="center", fontsize=9)
    figure.text(0, 0, " ".join(f"{room}>{target}" for room, target in sorted(found)), alpha=0, fontsize=1)
    with mpl.rc_context({"svg.fonttype": "none"}):
        save_figure(figure, path)


def drawn(path: Path) -> set[tuple[str, str]]:
    """The arrows of a drawing, from the line that it carries for this."""
    return {(room, target) for room, target in re.findall(r"([\w.]+)&gt;([\w.]+)", path.read_text("utf-8"))}


def main() -> None:
    """Draw, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    rows = layers()
    found = arrows([room for row in rows for room in row])
    if parser.parse_args().check:
        if found != drawn(DRAWING):
            sys.exit(f"{DRAWING.name} is out of date; run scripts/draw_architecture.py")
        return
    draw(rows, found, DRAWING)


if __name__ == "__main__":
    main()
