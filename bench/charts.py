"""Charts of what the benchmarks return, as SVG or PNG on white, so that they read the same on light and dark pages.

The same result gives the same file, byte for byte: a chart in the repository changes when its figures do.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from dare_core.reports.chart_style import COLOURS, save_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

#: Contenders in the order of their bars: what a user would run instead in greys and oranges, the engine in colours.
_CONTENDERS: Final = {
    "generate": ("transformers generate", "#bdbdbd"),
    "generate_batch": ("transformers generate_batch", "#858585"),
    "prompt_lookup": ("transformers prompt lookup", "#525252"),
    "vllm": ("vLLM", "#f2a93b"),
    "vllm_ngram": ("vLLM, n-gram drafts", "#b86b00"),
    "vllm_suffix": ("vLLM, suffix decoding", "#7a4700"),
    "llamacpp_f32": ("llama.cpp F32", "#d9b3d0"),
    "llamacpp_f32_lookup": ("llama.cpp F32, lookup", "#b887ab"),
    "llamacpp_q8": ("llama.cpp Q8_0", "#8f5f86"),
    "llamacpp_q8_lookup": ("llama.cpp Q8_0, lookup", "#5c3a56"),
    "undrafted": ("DARE engine, no drafts", "#a6cbe8"),
    "strict": ("DARE strict", COLOURS["passed"]),
    "cold": ("DARE relaxed, no pool", "#8fd0b4"),
    "relaxed": ("DARE relaxed", COLOURS["dare"]),
}
#: For contenders that are not known here.
_SPARE: Final = ("#cc79a7", "#8c6bb1", "#a6761d", "#e7298a")

_PARTS: Final = {
    "draft": COLOURS["lost"],
    "forward": COLOURS["neutral"],
    "verify": COLOURS["passed"],
    "commit": COLOURS["dare"],
}
_POLICIES: Final = {"plain": COLOURS["plain"], "fixed": COLOURS["lost"], "budgeted": COLOURS["passed"]}
_MODES: Final[dict[str, Literal["-", "--"]]] = {"relaxed": "-", "strict": "--"}

_PRECISION: Final = re.compile(r"(?:^|_)(fp32|bf16|fp16|int8)(?=_)")
#: Contenders in it stand beside those whose name says no precision.
_FULL: Final = "fp32"
_BATCH: Final = re.compile(r"_b(\d+)$")


class _Measured(NamedTuple):
    """What a name in a result says, such as ``bf16_relaxed_b16``; sorts into the order of the charts."""

    precision: str  # "": full
    rank: int
    contender: str
    batch: int
    name: str


@style()
def draw_decode(result: Mapping[str, Any], path: Path) -> None:
    """Draw tokens per second, a panel per precision and batch size, and where the engine's time went.

    Args:
        result: what ``dare bench decode`` prints: ``tokens_per_second`` and ``runs`` by names such as ``relaxed_b16``
            or ``bf16_strict_b1``, ``time_shares`` by some of these names. Names of another form are left out;
            contenders that are not known are drawn under their own name.
        path: file to write; its suffix (``.svg``, ``.png``) says in which format.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    speeds, runs = result["tokens_per_second"], result.get("runs", {})
    measured = _parsed(speeds)
    contenders = list(dict.fromkeys(m.contender for m in sorted(measured, key=lambda m: m.rank)))
    spare = cycle(_SPARE)
    styles = {name: _CONTENDERS.get(name) or (name.replace("_", " "), next(spare)) for name in contenders}
    shares = {m.name: result["time_shares"][m.name] for m in _parsed(result.get("time_shares", {}))}
    panels: dict[tuple[str, int], list[_Measured]] = {}
    for m in measured:
        panels.setdefault((m.precision, m.batch), []).append(m)
    precisions, batches = sorted({p for p, _ in panels}), sorted({batch for _, batch in panels})
    # A bar is as wide in every panel.
    widths = [max(len(group) for (_, at), group in panels.items() if at == batch) for batch in batches]

    height = max(5.5, 3.2 * len(precisions) + 1.2, 0.24 * len(shares) + 1.6)
    figure = Figure(figsize=(13.5, height), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.4, 1), squeeze=False)[0]
    if panels:
        grid = left.subplots(len(precisions), len(batches), squeeze=False, width_ratios=widths)
        for row, precision in zip(grid, precisions, strict=True):
            for axes, batch, width in zip(row, batches, widths, strict=True):
                group = panels.get((precision, batch), [])
                _draw_speeds(axes, [(styles[m.contender], speeds[m.name], runs.get(m.name)) for m in group])
                axes.set_xlim(-0.6, width - 0.4)
                axes.set_xlabel(f"{batch} sequence{'s' if batch > 1 else ''}" if group else "")
            row[0].set_ylabel(precision or "full precision")
    left.suptitle("Tokens per second (scale of each panel its own; whiskers: slowest and fastest run)")
    left.legend(
        handles=[Patch(color=styles[name][1], label=styles[name][0]) for name in contenders],
        loc="outside lower center", ncols=3,
    )  # fmt: skip
    _draw_shares(right, shares)
    save_figure(figure, path)


@style()
def draw_projection(result: Mapping[str, Any], path: Path) -> None:
    """Draw the speed-up over plain decoding by batch size, a panel per GPU and model.

    Args:
        result: what :func:`bench.project.project` returned.
        path: file to write; its suffix (``.svg``, ``.png``) says in which format.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    speedup = result["speedup"]
    models = list(dict.fromkeys(model for by_model in speedup.values() for model in by_model))
    sizes = sorted({int(batch) for panel in _lines(speedup) for batch in panel})
    figure = Figure(figsize=(3.6 * len(models) + 0.6, 2.9 * len(speedup) + 1.4), layout="constrained")
    grid = figure.subplots(len(speedup), len(models), sharex=True, sharey=True, squeeze=False)
    for row, (gpu, by_model) in zip(grid, speedup.items(), strict=True):
        for axes, model in zip(row, models, strict=True):
            _draw_speedup(axes, by_model.get(model, {}))
            axes.set_title(f"{gpu}, {model}")
    for axes in grid[-1]:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
        axes.set_xlabel("sequences in a batch")
    for axes in grid[:, 0]:
        axes.set_ylim(bottom=0)
        axes.set_ylabel("speed-up over plain")
    key = [Line2D([], [], color=colour, linewidth=2, label=policy) for policy, colour in _POLICIES.items()]
    key += [Line2D([], [], color=COLOURS["ink"], linestyle=line, label=mode) for mode, line in _MODES.items()]
    figure.legend(handles=key, loc="outside lower center", ncols=len(key))
    figure.suptitle("Decoding speed on GPUs: projection, not measured")
    save_figure(figure, path)


def _draw_speeds(axes: "Axes", bars: Sequence[tuple[tuple[str, str], float, Sequence[float] | None]]) -> None:
    for place, ((_, colour), speed, made) in enumerate(bars):
        slowest, fastest = min(made or [speed]), max(made or [speed])
        axes.bar(place, speed, 0.9, color=colour)
        axes.vlines(place, slowest, fastest, color=COLOURS["ink"], linewidth=1)
        text = f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"
        axes.annotate(text, (place, max(speed, fastest)), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])  # the bars bear their numbers
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(bool(bars))


def _draw_shares(figure: "SubFigure", shares: Mapping[str, Mapping[str, float]]) -> None:
    from matplotlib.patches import Patch

    if not shares:
        return
    axes, spare = figure.subplots(), cycle(_SPARE)
    parts = dict.fromkeys([*_PARTS, *(part for taken in shares.values() for part in taken)])
    colours = {part: _PARTS.get(part) or next(spare) for part in parts}
    begin = [0.0] * len(shares)
    for part, colour in colours.items():
        widths = [100 * taken.get(part, 0.0) for taken in shares.values()]
        axes.barh([name.replace("_", " ") for name in shares], widths, 0.75, left=begin, color=colour)
        begin = [a + b for a, b in zip(begin, widths, strict=True)]
    axes.set_xlim(0, 100)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    figure.suptitle("Where a step's time goes, %")
    figure.legend(
        handles=[Patch(color=colour, label=part) for part, colour in colours.items()],
        loc="outside lower center", ncols=4, handlelength=1, columnspacing=1,
    )  # fmt: skip


def _draw_speedup(axes: "Axes", by_mode: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    drawn = False
    for mode, by_policy in by_mode.items():
        for policy, by_batch in by_policy.items():
            sizes = sorted(by_batch, key=int)
            drawn |= bool(sizes)
            axes.plot(
                [int(size) for size in sizes],
                [by_batch[size] for size in sizes],
                color=_POLICIES.get(policy, _SPARE[0]),
                linestyle=_MODES.get(mode, ":"),
                linewidth=1 if policy == "plain" else 1.8,
                marker="" if policy == "plain" else "o",
                markersize=3,
            )
    if not drawn:
        axes.text(0.5, 0.5, "does not fit in memory", transform=axes.transAxes, ha="center", color=COLOURS["soft"])
    axes.grid(axis="y")


def _lines(speedup: Mapping[str, Any]) -> list[Mapping[str, float]]:
    return [
        by_batch
        for by_model in speedup.values()
        for by_mode in by_model.values()
        for by_policy in by_mode.values()
        for by_batch in by_policy.values()
    ]


def _parsed(names: Iterable[str]) -> list[_Measured]:
    known, measured = list(_CONTENDERS), []
    for name in names:
        precision, batch = _PRECISION.search(name), _BATCH.search(name)
        contender = _BATCH.sub("", _PRECISION.sub("", name)).strip("_")
        if batch and contender:
            rank = known.index(contender) if contender in known else len(known)
            reduced = precision[1] if precision and precision[1] != _FULL else ""
            measured.append(_Measured(reduced, rank, contender, int(batch[1]), name))
    return sorted(measured)
