"""The plots of a run of class-balanced experts (needs matplotlib)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltkernels.train.evaluation import GROUPS
from ltkernels.train.plots import new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

__all__ = ["plot_fusion"]

_COLOURS = {"overall": "black", "many": "#31688e", "medium": "#35b779", "few": "#e07b39"}


def plot_fusion(folder: Path, *, title: str, fusion: Mapping[str, Any]) -> list[Path]:
    """Draw the strategies beside each other, who takes whose images, and how sure the experts are.

    Args:
        folder: where the PNG files go; made if missing.
        title: what the run is.
        fusion: ``fusion`` of ``result.json``.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "fusion": _strategies(fusion),
        "expert_confusion": _confusion(fusion),
        "expert_confidence": _confidence(fusion),
    }
    files = []
    for name, figure in figures.items():
        figure.suptitle(title, fontsize=10)
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=120)
    return files


def _strategies(fusion: Mapping[str, Any]) -> Figure:
    rows = {name: row["accuracy"] for name, row in fusion["strategies"].items()}
    rows["oracle"] = fusion["oracle"]
    figure, axes = new_figure(7.5, 4)
    groups = [g for g in (*GROUPS, "overall") if rows["oracle"][g] is not None]
    width = 0.8 / len(groups)
    for i, group in enumerate(groups):
        places = [k + (i - (len(groups) - 1) / 2) * width for k in range(len(rows))]
        values = [row[group] for row in rows.values()]
        axes.bar(places, values, width, color=_COLOURS[group], label=group)
    axes.set_xticks(range(len(rows)), [name.replace("_", "\n") for name in rows])
    axes.set(ylabel="test accuracy, %", ylim=(0, 100))
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure


def _confusion(fusion: Mapping[str, Any]) -> Figure:
    table, names = fusion["confusion"], [expert["name"] for expert in fusion["experts"]]
    figure, axes = new_figure(4.6, 4)
    axes.imshow(table, cmap="Blues", vmin=0, vmax=100)
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            colour = "white" if value > 60 else "black"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="expert of the predicted class", ylabel="expert of the true class")
    axes.set_title(f"% of the images, {fusion['strategy']}", fontsize=9)
    return figure


def _confidence(fusion: Mapping[str, Any]) -> Figure:
    experts = fusion["experts"]
    figure, first = new_figure(3.2 * len(experts), 3.4)
    first.remove()
    for expert, axes in zip(
        experts, figure.subplots(1, len(experts), squeeze=False)[0], strict=True
    ):
        axes.spines[["top", "right"]].set_visible(False)
        bins = len(expert["confidence"]["own"])
        places = [(i + 0.5) / bins for i in range(bins)]
        for kind, word, colour in (("own", "own", "#31688e"), ("others", "other", "#e07b39")):
            shares = [100 * share for share in expert["confidence"][kind]]
            axes.bar(places, shares, 1 / bins, color=colour, alpha=0.6, label=f"{word} classes")
        axes.set(xlabel="confidence", xlim=(0, 1))
        axes.set_title(f"{expert['name']}, {expert['classes']} classes", fontsize=9)
        axes.legend(frameon=False, fontsize=8, loc="upper center")
    figure.axes[0].set_ylabel("images, %")
    return figure
