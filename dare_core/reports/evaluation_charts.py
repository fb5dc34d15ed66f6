"""The chart of what ``dare evaluate`` measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dare_core.evaluation.run import ARM_LABELS
from dare_core.reports.figures import save_figure

_COLOURS: Final = {
    "attributes": "#858585",
    "strict": "#2878b5",
    "relaxed": "#0f8a5f",
    "looser": "#d9822b",
    "refreshed": "#8c6bb1",
}
_NAMES: Final = {"din": "DIN", "dcnv2": "DCN-v2"}


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
            axes.hlines(row, low, high, color="#222222", linewidth=1.4)
        axes.axvline(0, color="#222222", linewidth=0.8)
        axes.set_yticks(range(len(_COLOURS)), [ARM_LABELS[arm] for arm in _COLOURS], fontsize=9)
        axes.set_title(f"{_NAMES[model]}, no knowledge: {arms['none']['auc']:.4f}", fontsize=10)
        axes.set_xlabel("AUC over no knowledge", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.suptitle(f"{result['domain']}: {result['seeds']} paired seeds, 95% intervals", fontsize=11)
    save_figure(figure, path)
