"""The chart of what ``dare evaluate`` measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dare_core.evaluation.arms import LABELS
from dare_core.reports.chart_style import COLOURS, save_figure, style

_COLOURS: Final = {
    "attributes": COLOURS["plain"],
    "shuffled": COLOURS["lost"],
    "strict": COLOURS["passed"],
    "relaxed": COLOURS["dare"],
    "int8": "#b8508f",
    "nightly": "#8c6bb1",
}
_NAMES: Final = {"din": "DIN", "dcnv2": "DCN-v2"}


@style()
def draw_evaluation(result: Mapping[str, Any], path: Path) -> None:
    """Draw AUC over no knowledge, with 95% intervals: a bar per arm.

    Args:
        result: what :func:`dare_core.evaluation.run.evaluate` returned, the arm ``none`` among it.
        path: file to write; its suffix (``.svg``, ``.png``) says in which format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.subplots()
    drawn = [arm for arm in _COLOURS if arm in result["arms"]]
    for row, arm in enumerate(drawn):
        mean, low, high = result["arms"][arm]["auc_over_none"]
        axes.barh(row, mean, 0.6, color=_COLOURS[arm])
        axes.hlines(row, low, high, color=COLOURS["ink"], linewidth=1.4)
    axes.axvline(0, color=COLOURS["ink"], linewidth=0.8)
    axes.set_yticks(range(len(drawn)), [LABELS[arm] for arm in drawn])
    axes.invert_yaxis()
    none = result["arms"]["none"]["auc"]
    axes.set_xlabel(f"AUC over no knowledge ({none:.4f}), with 95% intervals over test users and seeds")
    splits = len(result["splits"])
    figure.suptitle(f"{result['domain']}: {_NAMES[result['click_model']]}, {splits} splits, {result['seeds']} seeds")
    save_figure(figure, path)
