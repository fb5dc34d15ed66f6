"""The chart of what ``dare evaluate`` measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dare_core.evaluation.run import ARM_LABELS
from dare_core.reports.chart_style import COLOURS, save_figure, style

_COLOURS: Final = {
    "attributes": COLOURS["plain"],
    "strict": COLOURS["passed"],
    "relaxed": COLOURS["dare"],
    "looser": COLOURS["lost"],
    "refreshed": "#8c6bb1",
}
_NAMES: Final = {"din": "DIN", "dcnv2": "DCN-v2"}


@style()
def draw_evaluation(result: Mapping[str, Any], path: Path) -> None:
    """Draw AUC over no knowledge, with 95% intervals: a panel per click model, a bar per arm.

    Args:
        result: what :func:`dare_core.evaluation.run.evaluate` returned.
        path: file to write; its suffix (``.svg``, ``.png``) says in which format.
    """
    from matplotlib.figure import Figure

    models = result["click_models"]
    figure = Figure(figsize=(5.4 * len(models) + 1.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (model, arms) in zip(panels, models.items(), strict=True):
        for row, (arm, colour) in enumerate(_COLOURS.items()):
            mean, low, high = arms[arm]["auc_minus_none"]
            axes.barh(row, mean, 0.6, color=colour)
            axes.hlines(row, low, high, color=COLOURS["ink"], linewidth=1.4)
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.8)
        axes.set_yticks(range(len(_COLOURS)), [ARM_LABELS[arm] for arm in _COLOURS])
        axes.set_title(f"{_NAMES[model]}, no knowledge: {arms['none']['auc']:.4f}")
        axes.set_xlabel("AUC over no knowledge")
    panels[0].invert_yaxis()
    figure.suptitle(f"{result['domain']}: {result['seeds']} paired seeds, 95% intervals")
    save_figure(figure, path)
