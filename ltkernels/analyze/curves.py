"""Loss and accuracy over the epochs of several runs in one figure: with and without a part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltkernels.train.config import ConfigError
from ltkernels.train.plots import new_figure

__all__ = ["plot_curves"]


def plot_curves(runs: Sequence[Path], out: Path) -> Path:
    """Draw the training loss, the unweighted cross-entropy where a run has it, and test accuracy.

    Args:
        runs: folders of runs, finished or not; a curve is named after its folder.
        out: the PNG file (needs matplotlib).

    Returns:
        `out`.

    Raises:
        ConfigError: a folder holds no run.
    """
    figure, axes = new_figure(11, 3.6)
    figure.clear()
    panels = dict(zip(("loss", "cross-entropy", "test"), figure.subplots(1, 3), strict=True))
    for run in runs:
        rows = _rows(run)
        epochs = range(1, len(rows) + 1)
        (line,) = panels["loss"].plot(epochs, [r["loss"] for r in rows], label=run.name)
        colour = line.get_color()
        # Of cross-entropy alone the loss is the cross-entropy; other losses do not compare.
        plain = [_cross_entropy(r) for r in rows]
        if None not in plain:
            panels["cross-entropy"].plot(epochs, plain, color=colour)
        tested = [
            (e, r["test"]["overall"]) for e, r in zip(epochs, rows, strict=True) if "test" in r
        ]
        if tested:
            panels["test"].plot(*zip(*tested, strict=True), ".-", color=colour, linewidth=1)
    panels["loss"].set_ylabel("training loss")
    panels["cross-entropy"].set_ylabel("training cross-entropy, unweighted")
    panels["test"].set_ylabel("test accuracy, %")
    for axes in panels.values():
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=min(4, len(runs)), loc="outside upper center")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return out


def _rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        raise ConfigError(f"{run} holds no run: {path.name} is missing")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _cross_entropy(row: dict[str, Any]) -> float | None:
    value: float | None = row.get("lfme", {}).get("cross_entropy")
    return value
