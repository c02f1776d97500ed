"""The plots of a run (needs matplotlib)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ltkernels.metrics import class_accuracy, reliability, shot_groups
from ltkernels.train.evaluation import GROUPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = [
    "HOW_TO_GET_PLOTS",
    "can_plot",
    "draw_reliability",
    "new_figure",
    "plot_run",
    "save_figures",
]

HOW_TO_GET_PLOTS = "no plots: `pip install matplotlib`, then run again with --resume"

_COLOURS = {"many": "#31688e", "medium": "#35b779", "few": "#e07b39"}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def new_figure(width: float = 7.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure of one plot, in the style of all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_run(
    folder: Path,
    *,
    title: str,
    logits: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    rule: str,
    history: Sequence[dict[str, Any]],
) -> list[Path]:
    """Draw a run's plots.

    Args:
        folder: where the PNG files go; made if missing.
        title: what the run is.
        logits: ``[M, C]`` of the test images.
        labels: int64 ``[M]``.
        class_counts: ``[C]``, training images of each class.
        rule: which classes are many, medium and few.
        history: rows of ``metrics.jsonl``.

    Returns:
        The files written.
    """
    prediction = logits.argmax(1)
    group = shot_groups(class_counts, rule)  # type: ignore[arg-type]
    figures = {
        "class_accuracy": _class_accuracy(prediction, labels, class_counts, group),
        "group_confusion": _group_confusion(prediction, labels, group),
        "confusion": _confusion(prediction, labels, class_counts),
        "reliability": _reliability(logits, labels),
        "curves": _curves(history),
    }
    return save_figures(folder, title, figures)


def save_figures(folder: Path, title: str, figures: Mapping[str, Figure]) -> list[Path]:
    """Write figures as PNG files by name, each with the title; the folder is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in figures.items():
        figure.suptitle(title, fontsize=10)
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=120)
    return files


def _class_accuracy(
    prediction: Tensor, labels: Tensor, class_counts: Tensor, group: Tensor
) -> Figure:
    order = class_counts.argsort(descending=True, stable=True)
    accuracy = (100 * class_accuracy(prediction, labels, len(class_counts))[order]).numpy()
    counts, group_of = class_counts[order].numpy(), group[order].numpy()
    figure, axes = new_figure()
    position = np.arange(len(order))
    for index, name in enumerate(GROUPS):
        own = group_of == index
        if len(order) <= 300:
            axes.bar(position[own], accuracy[own], width=0.9, color=_COLOURS[name], label=name)
        else:  # narrower than a pixel each; thousands of bars would take half a minute
            axes.vlines(position[own], 0, accuracy[own], color=_COLOURS[name], label=name, lw=0.6)
    axes.set(xlabel="class, by training images", ylabel="test accuracy, %", ylim=(0, 100))
    twin = axes.twinx()
    twin.spines["top"].set_visible(False)
    twin.plot(position, counts, color="black", linewidth=1.2)
    twin.set(ylabel="training images (line)", yscale="log")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure


def _group_confusion(prediction: Tensor, labels: Tensor, group: Tensor) -> Figure:
    """Where the images of each group go: right, or wrong into one of the groups."""
    columns = ["right", *(f"wrong: {name}" for name in GROUPS)]
    share = torch.zeros(len(GROUPS), len(columns))
    for index in range(len(GROUPS)):
        own = group[labels] == index
        if not own.any():
            continue
        right = prediction[own] == labels[own]
        share[index, 0] = right.double().mean()
        wrong = torch.bincount(group[prediction[own][~right]], minlength=len(GROUPS))
        share[index, 1:] = wrong / own.sum()
    figure, axes = new_figure(6, 3.2)
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(GROUPS)), GROUPS)
    axes.set(xlabel="prediction", ylabel="true class")
    for i in range(len(GROUPS)):
        for j in range(len(columns)):
            value = float(share[i, j])
            colour = "white" if value > 0.5 else "black"
            axes.text(j, i, f"{100 * value:.1f} %", ha="center", va="center", color=colour)
    return figure


def _confusion(prediction: Tensor, labels: Tensor, class_counts: Tensor) -> Figure:
    """Every class against every class, on a logarithmic scale: single errors show, too.

    Of more than 1,000 classes, neighbours by training images share a cell.
    """
    from matplotlib.colors import LogNorm

    classes = len(class_counts)
    share_a_cell = -(-classes // 1000)
    cells = -(-classes // share_a_cell)
    cell = torch.empty(classes, dtype=torch.int64)
    order = class_counts.argsort(descending=True, stable=True)
    cell[order] = torch.arange(classes) // share_a_cell
    matrix = torch.bincount(cell[labels] * cells + cell[prediction], minlength=cells * cells)
    matrix = matrix.view(cells, cells)
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    figure, axes = new_figure(5.4, 4.6)
    least = 1 / max(int(matrix.sum(1).max()), 2)  # one image of the most frequent class
    shown = axes.imshow(share.numpy(), cmap="magma_r", norm=LogNorm(least, 1))
    axes.set(xlabel="prediction, by training images", ylabel="true class, by training images")
    figure.colorbar(shown, label="share of the class's test images")
    return figure


def _reliability(logits: Tensor, labels: Tensor) -> Figure:
    bins = reliability(logits.softmax(1), labels)
    return draw_reliability(
        bins.edges.numpy(),
        bins.count.numpy(),
        bins.accuracy.numpy(),
        bins.confidence.numpy(),
        f"ECE {100 * bins.expected_calibration_error:.1f} %",
    )


def draw_reliability(edges: Any, count: Any, accuracy: Any, confidence: Any, title: str) -> Figure:
    """A reliability diagram of B bins.

    Args:
        edges: ``[B + 1]``, 0 to 1.
        count: images in each bin, ``[B]``.
        accuracy: of each bin's images, ``[B]``.
        confidence: their mean, ``[B]``.
        title: above the plot.
    """
    figure, axes = new_figure(4.6, 4.2)
    used = count > 0
    centre = ((edges[:-1] + edges[1:]) / 2)[used]
    axes.bar(centre, accuracy[used], width=0.92 * float(edges[1]), color="#31688e")
    axes.plot(confidence[used], accuracy[used], "o", color="#e07b39", markersize=4)
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(title, fontsize=10)
    return figure


def _curves(history: Sequence[dict[str, Any]]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure()
    position = range(1, len(history) + 1)
    axes.plot(position, [row["loss"] for row in history], color="grey", label="training loss")
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    twin = axes.twinx()
    twin.spines["top"].set_visible(False)
    evaluated = [
        (p, row["test"]) for p, row in zip(position, history, strict=True) if "test" in row
    ]
    for name, colour in {"overall": "black", **_COLOURS}.items():
        points = [(p, test[name]) for p, test in evaluated if test[name] is not None]
        if points:
            twin.plot(*zip(*points, strict=True), ".-", color=colour, label=name, linewidth=1)
    twin.set(ylabel="test accuracy, %", ylim=(0, 100))
    twin.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure
