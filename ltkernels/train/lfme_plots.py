"""The plots of an LFME run (needs matplotlib)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltkernels.train.plots import new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_lfme"]

_COLOURS = ("#31688e", "#35b779", "#e07b39", "#7b4173", "#8c8c8c")


def plot_lfme(folder: Path, *, title: str, history: Sequence[dict[str, Any]]) -> list[Path]:
    """Draw the weights of experts and images over the epochs, and the losses without them.

    Args:
        folder: where the PNG files go; made if missing.
        title: what the run is.
        history: rows of ``metrics.jsonl``, with their ``lfme`` entries.

    Returns:
        The files written: one for each part of the method that is on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row["lfme"] for row in history]
    figures = {"loss_terms": _loss_terms(history, rows)}
    if "student_accuracy" in rows[0]:
        figures["expert_weight"] = _expert_weight(rows)
    if "instance_weight" in rows[0]:
        figures["instance_weight"] = _instance_weight(rows)
    files = []
    for name, figure in figures.items():
        figure.suptitle(title, fontsize=10)
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=120)
    return files


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _subset(index: int, count: int) -> str:
    """Subsets in words; 0 is the one of the classes with most images."""
    names = ("many", "medium", "few") if count == 3 else ("many", "few") if count == 2 else None
    return f"subset {index}" if names is None else names[index]


def _by_subset(rows: Sequence[dict[str, Any]], key: str) -> list[list[float]]:
    return [list(values) for values in zip(*(row[key] for row in rows), strict=True)]


def _epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _expert_weight(rows: Sequence[dict[str, Any]]) -> Figure:
    """w_l, and below what it follows from: accuracies of student (line) and expert (dashes)."""
    figure, axes = new_figure(7, 5.6)
    figure.clear()
    upper, lower = figure.subplots(2, 1, sharex=True)
    epochs = range(1, len(rows) + 1)
    weights = _by_subset(rows, "expert_weight")
    for index, weight in enumerate(weights):
        name, colour = _subset(index, len(weights)), _colour(index)
        upper.plot(epochs, weight, ".-", color=colour, linewidth=1, label=name)
    for index, accuracy in enumerate(_by_subset(rows, "student_accuracy")):
        lower.plot(epochs, accuracy, ".-", color=_colour(index), linewidth=1)
        lower.axhline(
            rows[0]["expert_accuracy"][index], color=_colour(index), linestyle="--", linewidth=1
        )
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    upper.set(ylabel="weight of the expert", ylim=(min(0.0, *map(min, weights)), 1.05))
    lower.set(ylabel="accuracy, %\n(dashes: expert)", ylim=(0, 100))
    _epochs(lower)
    upper.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return figure


def _instance_weight(rows: Sequence[dict[str, Any]]) -> Figure:
    """The median of v_i in each subset, its middle half and its range."""
    figure, axes = new_figure()
    epochs = range(1, len(rows) + 1)
    quantiles = _by_subset(rows, "instance_weight")
    for index, of_epoch in enumerate(quantiles):
        low, quarter, middle, three_quarters, high = zip(*of_epoch, strict=True)
        name, colour = _subset(index, len(quantiles)), _colour(index)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.1, linewidth=0)
        axes.fill_between(epochs, quarter, three_quarters, color=colour, alpha=0.3, linewidth=0)
        axes.plot(epochs, middle, color=colour, label=name)
    axes.set(ylabel="weight of the images: median, half, range")
    axes.set_ylim(bottom=0)
    _epochs(axes)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure


def _loss_terms(history: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> Figure:
    """The loss that was minimised, and its terms without weights."""
    figure, axes = new_figure()
    epochs = range(1, len(rows) + 1)
    plain = [row["cross_entropy"] + sum(row.get("divergence", ())) for row in rows]
    axes.plot(epochs, [row["loss"] for row in history], color="black", label="with weights")
    axes.plot(epochs, plain, "--", color="black", label="without weights")
    axes.plot(
        epochs, [row["cross_entropy"] for row in rows], color="grey", label="cross-entropy, without"
    )
    if "divergence" in rows[0]:
        divergences = _by_subset(rows, "divergence")
        for index, divergence in enumerate(divergences):
            name = f"expert {_subset(index, len(divergences))}, without"
            axes.plot(epochs, divergence, color=_colour(index), linewidth=1, label=name)
    axes.set(ylabel="training loss")
    axes.set_ylim(bottom=0)
    _epochs(axes)
    axes.legend(frameon=False)
    return figure
