"""Subsets of the classes by their number of training images, and how long-tailed each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ltkernels.metrics import (
    gini_coefficient,
    imbalance_absolute_deviation,
    imbalance_divergence,
    imbalance_ratio,
)

__all__ = [
    "Longtailness",
    "SubsetRule",
    "class_subsets",
    "format_longtailness",
    "longtailness",
    "subset_names",
]

SubsetRule: TypeAlias = Literal["liu", "kang", "sharma", "wang", "overlap"]


def _borders(thresholds: Sequence[int], rule: SubsetRule) -> list[tuple[int, int]]:
    """(largest count below, smallest count above) of each threshold, from the largest on."""
    function = "class_subsets"
    rising = sorted(set(thresholds))
    if not rising or rising != list(thresholds) or rising[0] < 1:
        raise ValueError(
            f"`{function}`: expected `thresholds` to be rising numbers >= 1, got {thresholds}"
        )
    first = rising[0]
    borders = []
    for t in reversed(rising):
        if rule == "overlap":
            borders.append((t, t))
        elif rule == "sharma" or (rule == "liu" and t > first) or (rule == "kang" and t == first):
            borders.append((t - 1, t))
        elif rule in ("wang", "liu", "kang"):
            borders.append((t, t + 1))
        else:
            names = ("liu", "kang", "sharma", "wang", "overlap")
            raise ValueError(f"`{function}`: expected `rule` to be one of {names}, got {rule!r}")
    return borders


def class_subsets(
    counts: Tensor | Sequence[int],
    thresholds: Sequence[int] = (20, 100),
    rule: SubsetRule = "liu",
) -> tuple[Tensor, ...]:
    """Split the classes at thresholds of their image counts, from most images to fewest.

    A class whose count is a threshold goes where the rule says:

    | rule | to the larger counts | with (20, 100): many, medium, few | who |
    |---|---|---|---|
    | "liu" | all thresholds but the first | >= 100, 21..99, <= 20 | LFME's and OLTR's codes |
    | "kang" | the first threshold alone | > 100, 20..100, < 20 | RIDE, BKD |
    | "sharma" | every threshold | >= 100, 20..99, < 20 | class-balanced experts |
    | "wang" | none | > 100, 21..100, <= 20 | appendix of RIDE |
    | "overlap" | to both sides | >= 100, 20..100, <= 20 | text of LFME, sec. 4.1 |

    Args:
        counts: training images a class, `[C]`.
        thresholds: L - 1 rising numbers of images, each >= 1.
        rule: see above; the names are those of `metrics.shot_accuracy`.

    Returns:
        L int64 vectors, the classes of each subset in rising order; a subset may be empty.

    Raises:
        ValueError: the thresholds do not rise, there is none, or the rule is unknown.
    """
    n = torch.as_tensor(counts)
    borders = _borders(thresholds, rule)
    lows = [above for _, above in borders] + [0]
    highs = [int(n.max()) if n.numel() else 0] + [below for below, _ in borders]
    return tuple(
        ((n >= low) & (n <= high)).nonzero().flatten()
        for low, high in zip(lows, highs, strict=True)
    )


def subset_names(
    thresholds: Sequence[int] = (20, 100), rule: SubsetRule = "liu"
) -> tuple[str, ...]:
    """The subsets of `class_subsets` in words: ``(">=100", "21..99", "<=20")``."""
    borders = _borders(thresholds, rule)
    between = [f"{low}..{high}" for (high, _), (_, low) in pairwise(borders)]
    return (f">={borders[0][1]}", *between, f"<={borders[-1][0]}")


@dataclass(frozen=True)
class Longtailness:
    """How long-tailed a set of classes is (LFME, sec. 3); None for less than one class.

    Args:
        name: of the set.
        classes: C.
        images: N.
        ratio: `metrics.imbalance_ratio`.
        divergence: `metrics.imbalance_divergence`, in bits.
        deviation: `metrics.imbalance_absolute_deviation`.
        gini: `metrics.gini_coefficient`.
    """

    name: str
    classes: int
    images: int
    ratio: float | None
    divergence: float | None
    deviation: float | None
    gini: float | None


def longtailness(
    counts: Tensor, thresholds: Sequence[int] = (20, 100), rule: SubsetRule = "liu"
) -> tuple[Longtailness, ...]:
    """The four metrics of a data set and of its subsets, LFME's Table 1.

    Args:
        counts: training images a class, int64 `[C]`, > 0.
        thresholds, rule: as for `class_subsets`.

    Returns:
        L + 1 rows: the entire set, then the subsets from most images to fewest.
    """
    names = ("entire", *subset_names(thresholds, rule))
    parts = (torch.arange(len(counts)), *class_subsets(counts, thresholds, rule))
    rows = []
    for name, classes in zip(names, parts, strict=True):
        n = counts[classes]
        figures = (
            imbalance_ratio,
            imbalance_divergence,
            imbalance_absolute_deviation,
            gini_coefficient,
        )
        values = [figure(n) if len(classes) else None for figure in figures]
        rows.append(Longtailness(name, len(classes), int(n.sum()), *values))
    return tuple(rows)


def format_longtailness(rows: Sequence[Longtailness]) -> str:
    """The rows as a table; 0 (ratio 1) is balanced."""
    table = [["images a class", "classes", "images", "ratio", "divergence", "deviation", "Gini"]]
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.1f}"
        rest = [row.divergence, row.deviation, row.gini]
        cells = ["-" if value is None else f"{value:.3f}" for value in rest]
        table.append([row.name, str(row.classes), f"{row.images:,}", ratio, *cells])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
