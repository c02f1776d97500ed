"""What a run of class-balanced experts reports beside its accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltkernels.fusion import STRATEGIES, make_fusion, oracle
from ltkernels.metrics import expected_calibration_error, shot_accuracy

if TYPE_CHECKING:
    from .cbe import CBE
    from .method import TestSet

__all__ = ["fusion_report"]

GROUPS = ("many", "medium", "few")
BINS = 20


def fusion_report(method: CBE, test: TestSet) -> dict[str, Any]:
    """Entries of ``result.json``.

    Args:
        method: the trained method.
        test: the test images.

    Returns:
        ``fusion``: the strategy of the run; accuracy and ECE of each strategy; the oracle's
        accuracy; ``confusion``: by the run's strategy, the share of the images of each expert's
        classes that is given a class of each expert, in percent; ``experts``: of each its classes,
        its accuracy on their images when it must choose among them, the mean reject probability of
        its own and of other images, and histograms of its largest probability of a class of its
        own, for its own and for other images.
    """
    from .cbe import expert_names

    cbe = method.context.config.cbe
    classes = [own.cpu() for own in method.model.classes]
    widths = method.model.fusion.widths
    count = len(test.class_counts)
    found = test.run(lambda images: torch.cat(method.expert_logits(images), 1))
    logits = list(torch.split(found, widths, 1))
    strategies, predictions = {}, {}
    for name in STRATEGIES:
        fusion = make_fusion(
            name,
            classes,
            count,
            reject=method.reject,
            per=cbe.calibrate,
            calibration_decay=cbe.calibration_decay,
        )
        method.fit(fusion)
        with torch.no_grad():
            log_q = fusion(logits)
        predictions[name] = log_q.argmax(1)
        strategies[name] = {
            "accuracy": _accuracy(predictions[name], test),
            "ece": expected_calibration_error(log_q.exp(), test.labels),
        }
    best = oracle(logits, classes, test.labels, num_classes=count)
    expert_of = torch.zeros(count, dtype=torch.int64)
    for e, own in enumerate(classes):
        expert_of[own] = e
    names = expert_names(len(classes))
    return {
        "fusion": {
            "strategy": cbe.fusion,
            "mechanism": cbe.mechanism,
            "validation_images": len(method.validation_logits()[1]),
            "strategies": strategies,
            "oracle": _accuracy(best, test),
            "confusion": _confusion(
                expert_of[test.labels], expert_of[predictions[cbe.fusion]], len(classes)
            ),
            "experts": [
                _expert(name, z, own, expert_of[test.labels] == e, test)
                for e, (name, z, own) in enumerate(zip(names, logits, classes, strict=True))
            ],
        }
    }


def _accuracy(predicted: Tensor, test: TestSet) -> dict[str, float | None]:
    shots = shot_accuracy(predicted.clamp(min=0), test.labels, test.class_counts, test.rule)  # type: ignore[arg-type]
    fractions = {name: getattr(shots, name) for name in ("overall", *GROUPS)}
    return {k: None if v is None else 100 * v for k, v in fractions.items()}


def _confusion(true: Tensor, given: Tensor, experts: int) -> list[list[float]]:
    """Percent of the images of each expert's classes, by the expert of the predicted class."""
    table = torch.bincount(true * experts + given, minlength=experts**2).view(experts, experts)
    share = 100 * table.double() / table.sum(1, keepdim=True).clamp(min=1)
    rows: list[list[float]] = share.tolist()
    return rows


def _expert(name: str, z: Tensor, own: Tensor, inside: Tensor, test: TestSet) -> dict[str, Any]:
    p = z.softmax(1)
    confidence = p[:, : len(own)].amax(1)
    right = own[z[:, : len(own)].argmax(1)] == test.labels
    _, which, counts = torch.unique(test.labels[inside], return_inverse=True, return_counts=True)
    of_class = torch.zeros(len(counts), dtype=torch.float64)
    of_class.index_add_(0, which, right[inside].double())
    rejects = p.shape[1] > len(own)

    def histogram(mask: Tensor) -> list[float]:
        """Shares of the images in equal bins of the confidence, 0 to 1."""
        bins = (confidence[mask] * BINS).long().clamp(max=BINS - 1)
        share = torch.bincount(bins, minlength=BINS).double() / max(1, int(mask.sum()))
        shares: list[float] = share.tolist()
        return shares

    return {
        "name": name,
        "classes": len(own),
        "accuracy": 100 * float((of_class / counts).mean()) if len(counts) else None,
        "reject": {
            key: float(p[mask, -1].mean()) if rejects and bool(mask.any()) else None
            for key, mask in (("own", inside), ("others", ~inside))
        },
        "confidence": {"own": histogram(inside), "others": histogram(~inside)},
    }
