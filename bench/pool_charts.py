"""Charts of what ``dare bench pool`` measured over pool sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dare_core.reports.figures import save_figure

_SEARCH: Final = {
    "search_us_p50": "one sequence, median",
    "search_us_p99": "one sequence, 99th percentile",
    "search_batch64_us": "each of 64, two cores",
}


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
    build.plot(sizes, [one["build_tokens_per_s"] / 1e6 for one in measured], "o-", color="#2878b5")
    build.set_title("Build, million tokens per second, one core", fontsize=10)
    room.plot(sizes, [one["bytes_per_token"] for one in measured], "o-", color="#2878b5")
    room.set_title("Bytes per token, global pool included", fontsize=10)
    for (key, name), colour in zip(_SEARCH.items(), ("#2878b5", "#d9822b", "#0f8a5f"), strict=True):
        search.plot(sizes, [one[key] for one in measured], "o-", color=colour, label=name)
    search.set_title("Search and tree of 64 nodes, microseconds", fontsize=10)
    search.legend(frameon=False, fontsize=8)
    for axes in (build, room, search):
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens of the pool")
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
