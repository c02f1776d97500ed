"""What a run of collaborating experts reports beside its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltkernels.metrics import (
    expected_calibration_error,
    feature_distance,
    reliability,
    shot_groups,
)
from ltkernels.nn import MultiExpert, count_macs

from .ride_report import GROUPS, _accuracy

if TYPE_CHECKING:
    from .method import TestSet

__all__ = ["experts_report"]


def experts_report(
    model: MultiExpert,
    logits_of_experts: Callable[[Tensor], Sequence[Tensor]],
    test: TestSet,
    *,
    flip: bool,
) -> dict[str, Any]:
    """Entries of ``result.json``.

    Args:
        model: the trained network, in evaluation mode.
        logits_of_experts: K tensors ``[N, C]`` of normalised images, as the run predicts.
        test: the test images.
        flip: whether that is the mean of an image and its mirror image.

    Returns:
        ``experts``: accuracy of each expert alone and of the first i together, each one's ECE, and
        the ``reliability`` of the first. ``single``: the experts' mean accuracy and ECE.
        ``feature_distance``: mean over pairs of experts (ECL, eq. 12), by class and group; None for
        one expert. ``test_time_augmentation``, with which ``macs`` are those of both images.
    """
    count = model.num_experts

    def rows(images: Tensor) -> Tensor:
        logits = torch.stack([z.float() for z in logits_of_experts(images)], dim=1)
        features = torch.stack([v.float() for v in model.features(images)], dim=1)
        return torch.cat([logits, features], dim=2)

    found = test.run(rows).unbind(1)
    classes = len(test.class_counts)
    logits = [row[:, :classes] for row in found]
    features = torch.stack([row[:, classes:] for row in found])

    alone = [_accuracy(z.argmax(1), test) for z in logits]
    together = torch.stack(logits).cumsum(0)
    ece = [expected_calibration_error(z.softmax(1), test.labels) for z in logits]
    bins = reliability(logits[0].softmax(1), test.labels)
    return {
        "experts": {
            "alone": alone,
            "first": [_accuracy(z.argmax(1), test) for z in together],
            "ece": ece,
            "reliability": {
                "edges": bins.edges.tolist(),
                "count": bins.count.tolist(),
                "accuracy": bins.accuracy.tolist(),
                "confidence": bins.confidence.tolist(),
            },
        },
        "single": {
            "accuracy": {group: _mean([row[group] for row in alone]) for group in alone[0]},
            "ece": sum(ece) / count,
        },
        "feature_distance": _distances(features, test) if count > 1 else None,
        "test_time_augmentation": "horizontal flip" if flip else "none",
        "macs": count_macs(model, test.input_shape) * (2 if flip else 1),
    }


def _distances(features: Tensor, test: TestSet) -> dict[str, Any]:
    by_class = feature_distance(features, test.labels, len(test.class_counts)).mean(0)
    group = shot_groups(test.class_counts, test.rule)  # type: ignore[arg-type]
    there = by_class.isfinite()
    groups = {"overall": there, **{g: there & (group == i) for i, g in enumerate(GROUPS)}}
    return {
        **{name: _mean(by_class[own].tolist()) for name, own in groups.items()},
        "classes": [float(d) if d.isfinite() else None for d in by_class],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
