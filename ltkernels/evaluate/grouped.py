"""Accuracy and calibration overall and on the classes of each group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ltkernels.metrics import (
    class_accuracy,
    expected_calibration_error,
    shot_accuracy,
    shot_groups,
)

__all__ = ["GROUPS", "Grouped", "grouped"]

GROUPS = ("overall", "many", "medium", "few")


@dataclass(frozen=True)
class Grouped:
    """Numbers by group; None for a group without test images, or where groups are not known.

    Args:
        accuracy: mean of the classes' accuracies, in percent.
        ece: expected calibration error, 15 bins, a fraction; of a group over the test images of
            its classes.
    """

    accuracy: dict[str, float | None]
    ece: dict[str, float | None]


def grouped(logits: Tensor, labels: Tensor, class_counts: Tensor | None, rule: str) -> Grouped:
    """Score logits against labels.

    Args:
        logits: ``[M, C]``; -inf where a class is impossible.
        labels: int64 ``[M]``.
        class_counts: int64 ``[C]``, training images a class; None where not known.
        rule: which classes are many, medium and few.
    """
    predicted, probabilities = logits.argmax(1), logits.softmax(1)
    of_class = class_accuracy(predicted, labels, logits.shape[1])
    accuracy: dict[str, float | None] = dict.fromkeys(GROUPS)
    ece: dict[str, float | None] = dict.fromkeys(GROUPS)
    accuracy["overall"] = 100 * float(of_class.nanmean())
    ece["overall"] = expected_calibration_error(probabilities, labels)
    if class_counts is None:
        return Grouped(accuracy, ece)
    shots = shot_accuracy(predicted, labels, class_counts, rule)  # type: ignore[arg-type]
    group = shot_groups(class_counts, rule)[labels]  # type: ignore[arg-type]
    for index, name in enumerate(GROUPS[1:]):
        fraction = getattr(shots, name)
        if fraction is not None:
            own = group == index
            accuracy[name] = 100 * fraction
            ece[name] = expected_calibration_error(probabilities[own], labels[own])
    return Grouped(accuracy, ece)
