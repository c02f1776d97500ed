"""The plots of a comparison (needs matplotlib)."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .contestants import SAME_PREDICTIONS, Entry, Field
from .document import Figure
from .statistics import SHOWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from .report import Comparison

__all__ = ["draw"]

COLOURS = {"overall": "#444444", "many": "#31688e", "medium": "#35b779", "few": "#e07b39"}


def draw(c: Comparison) -> list[Figure]:
    """The figures of a report: those for which there is something to draw."""
    drawings = {
        "groups": (_groups(c.found), "Accuracy by group; the lines are standard deviations."),
        "differences": (
            _differences(c) if c.differences else None,
            f"Difference to {c.baseline.name} in percentage points, with its interval; filled "
            "where it stands among all comparisons (Holm).",
        ),
        "cost": (_cost(c.found), "Accuracy against multiply-accumulates of an image."),
        "reliability": (
            _reliability(c.found),
            "Accuracy against confidence, the seeds together; below the line: overconfident.",
        ),
    }
    return [
        Figure(f"plots/{name}.png", _png(drawing), caption)
        for name, (drawing, caption) in drawings.items()
        if drawing is not None
    ]


def _png(drawing: Drawing) -> bytes:
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _axes(rows: int, columns: int, width: float, height: float) -> tuple[Drawing, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    drawing = MatplotlibFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = list(np.atleast_1d(drawing.subplots(rows, columns, squeeze=False)).ravel())
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def _lines(found: Field) -> list[Entry]:
    """Entries whose predictions are their own."""
    return [entry for entry in found.entries if entry.row not in SAME_PREDICTIONS]


def _mean_sd(entry: Entry, group: str) -> tuple[float, float] | None:
    values = [v for run in entry.runs.values() if (v := run.accuracy[group]) is not None]
    if not values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _groups(found: Field) -> Drawing:
    entries = _lines(found)
    drawing, (axes,) = _axes(1, 1, 8.5, 1.2 + 0.55 * len(entries))
    height = 0.8 / len(SHOWN)
    for k, group in enumerate(SHOWN):
        points = [(i, p) for i, e in enumerate(entries) if (p := _mean_sd(e, group)) is not None]
        if points:
            axes.barh(
                [i + (k - 1.5) * height for i, _ in points],
                [mean for _, (mean, _) in points],
                xerr=[sd for _, (_, sd) in points],
                height=height,
                color=COLOURS[group],
                error_kw={"linewidth": 1},
                label=group,
            )
    _name_rows(axes, [entry.name for entry in entries])
    axes.set(xlabel="test accuracy, %", xlim=(0, 100))
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawing


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _differences(c: Comparison) -> Drawing:
    groups = [g for g in SHOWN if any(own[g] is not None for own in c.differences.values())]
    drawing, panels = _axes(
        1, len(groups), 2.2 + 2.3 * len(groups), 1.2 + 0.32 * len(c.differences)
    )
    for k, (axes, group) in enumerate(zip(panels, groups, strict=True)):
        axes.axvline(0, color="grey", linewidth=1)
        for i, (name, own) in enumerate(c.differences.items()):
            d = own[group]
            if d is None:
                continue
            stands = c.stands[name][group]
            axes.plot([d.low, d.high], [i, i], color=COLOURS[group], linewidth=1.6)
            face = COLOURS[group] if stands else "white"
            axes.plot(d.points, i, "o", color=COLOURS[group], markerfacecolor=face, markersize=5)
        _name_rows(axes, list(c.differences) if k == 0 else [""] * len(c.differences))
        axes.set_title(group, fontsize=10)
    return drawing


def _cost(found: Field) -> Drawing | None:
    points = []
    for entry in _lines(found):
        known = [card.facts.get("macs") for card in entry.contestant.cards.values()]
        macs = [value for value in known if value is not None]
        accuracy = _mean_sd(entry, "overall")
        if macs and accuracy is not None and not entry.row:
            points.append((entry.name, statistics.mean(macs) / 1e6, *accuracy))
    if not points:
        return None
    drawing, (axes,) = _axes(1, 1, 7.5, 4.5)
    for name, x, y, sd in points:
        axes.errorbar(x, y, yerr=sd, fmt="o", color=COLOURS["many"], markersize=5, linewidth=1)
        axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="million multiply-accumulates of an image", ylabel="test accuracy, %")
    axes.margins(x=0.15)
    return drawing


def _reliability(found: Field) -> Drawing:
    entries = [entry for entry in found.entries if not entry.row]
    columns = min(4, len(entries))
    rows = -(-len(entries) // columns)
    drawing, panels = _axes(rows, columns, 2.5 * columns + 0.6, 2.5 * rows + 0.3)
    for axes, entry in zip(panels, entries, strict=False):
        runs = [run.bins for run in entry.runs.values()]
        count = np.sum([bins.count.numpy() for bins in runs], axis=0)
        used = count > 0
        shares = [bins.count.numpy() / np.maximum(count, 1) for bins in runs]
        of_bin = [(bins.accuracy.numpy(), bins.confidence.numpy()) for bins in runs]
        accuracy = np.sum([s * a for s, (a, _) in zip(shares, of_bin, strict=True)], axis=0)
        confidence = np.sum([s * c for s, (_, c) in zip(shares, of_bin, strict=True)], axis=0)
        edges = runs[0].edges.numpy()
        centre = ((edges[:-1] + edges[1:]) / 2)[used]
        axes.bar(centre, accuracy[used], width=0.92 * float(edges[1]), color=COLOURS["many"])
        axes.plot(confidence[used], accuracy[used], "o", color=COLOURS["few"], markersize=3)
        axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
        ece = [v for run in entry.runs.values() if (v := run.ece["overall"]) is not None]
        title = f"{entry.name}, ECE {100 * statistics.mean(ece):.1f} %" if ece else entry.name
        axes.set_title(title, fontsize=8)
        axes.set(xlim=(0, 1), ylim=(0, 1))
    for axes in panels[len(entries) :]:
        axes.set_visible(False)
    return drawing
