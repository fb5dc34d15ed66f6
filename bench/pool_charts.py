"""Charts of what ``dare bench pool`` measured over pool sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dare_core.reports.chart_style import COLOURS, save_figure, style

_SEARCH: Final = {
    "search_us_p50": "one sequence, median",
    "search_us_p99": "one sequence, 99th percentile",
    "search_batch64_us": "each of 64, two cores",
}


@style()
def draw_pools(result: Mapping[str, Any], path: Path) -> None:
    """Draw build rate, bytes per token, and search times by the tokens of a pool.

    Args:
        result: what :func:`bench.pool.bench_pool` returned with ``sizes``.
        path: file to write; its suffix (``.svg``, ``.png``) says in which format.
    """
    from matplotlib.figure import Figure

    sizes = sorted(map(int, result["sizes"]))
    measured = [result["sizes"][str(size)] for size in sizes]
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    build, room, search = figure.subplots(1, 3)
    build.plot(sizes, [one["build_tokens_per_s"] / 1e6 for one in measured], "o-", color=COLOURS["passed"])
    build.set_title("Build, million tokens per second, one core")
    room.plot(sizes, [one["bytes_per_token"] for one in measured], "o-", color=COLOURS["passed"])
    room.set_title("Bytes per token, global pool included")
    for (key, name), colour in zip(_SEARCH.items(), (COLOURS["passed"], COLOURS["lost"], COLOURS["dare"]), strict=True):
        search.plot(sizes, [one[key] for one in measured], "o-", color=colour, label=name)
    search.set_title("Search and tree of 64 nodes, microseconds")
    search.legend()
    for axes in (build, room, search):
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens of the pool")
    save_figure(figure, path)
