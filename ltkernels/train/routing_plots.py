"""The plots of a run with routers (needs matplotlib)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltkernels.train.evaluation import GROUPS
from ltkernels.train.plots import new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

__all__ = ["plot_routing"]


def plot_routing(folder: Path, *, title: str, routing: Mapping[str, Any]) -> list[Path]:
    """Draw which images how many experts see (RIDE's Fig. 5), and accuracy over cost.

    Args:
        folder: where the PNG files go; made if missing.
        title: what the run is.
        routing: ``routing`` of ``result.json``.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"experts_used": _experts_used(routing), "routing_cost": _cost(routing)}
    files = []
    for name, figure in figures.items():
        figure.suptitle(title, fontsize=10)
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=120)
    return files


def _experts_used(routing: Mapping[str, Any]) -> Figure:
    groups = ("overall", *GROUPS)
    shares = [routing["shares"][group] for group in groups]
    figure, axes = new_figure(6, 3.4)
    below = [0.0] * len(groups)
    count = len(shares[0])
    for i in range(count):
        height = [100 * share[i] for share in shares]
        shade = 0.15 + 0.7 * i / max(count - 1, 1)
        axes.bar(groups, height, 0.6, below, color=str(1 - shade), label=f"{i + 1}")
        below = [b + h for b, h in zip(below, height, strict=True)]
    axes.set(ylabel="test images, %", ylim=(0, 100))
    axes.legend(title="experts", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _cost(routing: Mapping[str, Any]) -> Figure:
    figure, axes = new_figure()
    curve = [row for row in routing["curve"] if row["accuracy"]["overall"] is not None]
    cost = [row["macs"] / routing["macs_of_all"] for row in curve]
    accuracy = [row["accuracy"]["overall"] for row in curve]
    axes.plot(cost, accuracy, ".-", color="#31688e", linewidth=1)
    chosen = routing["macs"] / routing["macs_of_all"], routing["accuracy"]["overall"]
    axes.plot(*chosen, "o", color="#e07b39", label=f"threshold {routing['threshold']:g}")
    axes.set(xlabel="mean multiply-accumulates, of those of all experts", ylabel="accuracy, %")
    axes.legend(frameon=False)
    return figure
