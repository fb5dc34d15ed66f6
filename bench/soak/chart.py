"""The soak over time, drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dare_core.reports.chart_style import COLOURS, save_figure, style


@style()
def draw_soak(result: Mapping[str, Any], path: Path) -> None:
    """Memory, open files, connections and latency over time; ticks below mark the ends of refreshes.

    Args:
        result: of :func:`~bench.soak.run.bench_soak`.
        path: file to write; the suffix says in which format.
    """
    from matplotlib.figure import Figure

    samples = result["samples"]
    minutes = [sample["at"] / 60 for sample in samples]
    figure = Figure(figsize=(10, 9), layout="constrained")
    memory, files, connections, latency = figure.subplots(4, 1, sharex=True)
    for name in samples[0]["memory"]:
        line = {"linewidth": 0.8, "linestyle": ":"} if name == "refresh" else {"linewidth": 1.4}
        memory.plot(minutes, [sample["memory"][name] for sample in samples], label=name, **line)
        files.plot(minutes, [sample["files"][name] for sample in samples], label=name, **line)
    connections.plot(minutes, [sample["connections"] for sample in samples], color=COLOURS["soft"])
    for name in ("p50", "p95"):
        latency.plot(minutes, [sample[name] for sample in samples], label=name)
    for axes, label in ((memory, "memory, MB"), (files, "open files"), (connections, "connections"), (latency, "ms")):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    memory.legend(loc="upper left", bbox_to_anchor=(1, 1))
    latency.legend(loc="upper left", bbox_to_anchor=(1, 1))
    refreshed = [moment / 60 for moment in result["refreshed_at"]]
    latency.plot(refreshed, [0] * len(refreshed), "|", color=COLOURS["soft"], markersize=8)
    latency.set_xlabel("minutes")
    save_figure(figure, path)
