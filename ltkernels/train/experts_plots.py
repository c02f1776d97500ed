"""The plots of a run of collaborating experts (needs matplotlib)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ltkernels.train.plots import draw_reliability, new_figure, save_figures

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["plot_experts"]


def plot_experts(
    folder: Path, *, title: str, result: Mapping[str, Any], class_counts: Tensor
) -> list[Path]:
    """Draw the first expert's reliability (the ensemble's is ``reliability``), and distances.

    Args:
        folder: where the PNG files go; made if missing.
        title: what the run is.
        result: content of ``result.json``.
        class_counts: ``[C]``, training images of each class.

    Returns:
        The files written.
    """
    figures = {"reliability_single": _reliability(result["experts"])}
    if result["feature_distance"] is not None:
        figures["feature_distance"] = _distances(result["feature_distance"], class_counts)
    return save_figures(folder, title, figures)


def _reliability(experts: Mapping[str, Any]) -> Figure:
    bins = {name: np.array(values) for name, values in experts["reliability"].items()}
    return draw_reliability(
        bins["edges"],
        bins["count"],
        bins["accuracy"],
        bins["confidence"],
        f"first expert alone, ECE {100 * experts['ece'][0]:.1f} %",
    )


def _distances(distance: Mapping[str, Any], class_counts: Tensor) -> Figure:
    """ECL's eq. 12, class by class: do experts differ more on rare classes?"""
    order = class_counts.argsort(descending=True, stable=True).tolist()
    by_class = [distance["classes"][c] for c in order]
    figure, axes = new_figure()
    there = [i for i, value in enumerate(by_class) if value is not None]
    axes.plot(there, [by_class[i] for i in there], ".", color="#31688e")
    for group, colour in (("many", "#31688e"), ("medium", "#35b779"), ("few", "#e07b39")):
        if distance[group] is not None:
            axes.axhline(distance[group], color=colour, linewidth=1, label=group)
    axes.set(xlabel="class, by training images", ylabel="distance of two experts' features")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
