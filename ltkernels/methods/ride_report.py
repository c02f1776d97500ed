"""What a RIDE run reports beside its accuracy: experts alone and together, cost, the trade-off."""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from ltkernels.metrics import shot_accuracy, shot_groups
from ltkernels.nn import MultiExpert, RoutedExperts

if TYPE_CHECKING:
    from torch import Tensor

    from .method import TestSet

__all__ = ["routing_report"]

GROUPS = ("many", "medium", "few")
# Thresholds of the trade-off curve, as probabilities: from every expert to the first alone.
CURVE = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 1.0)
TIMED_ROUNDS = 5


def routing_report(
    model: MultiExpert | RoutedExperts, threshold: float, test: TestSet
) -> dict[str, Any]:
    """Entries of ``result.json``.

    Args:
        model: the trained network, in evaluation mode.
        threshold: probability above which an image goes on.
        test: the test images.

    Returns:
        ``experts``: accuracy of each expert alone, and of the first i together. With routers also
        ``routing``: the share of images by number of experts, overall and by group; mean MACs and
        measured seconds beside those of all experts; and the trade-off over thresholds; ``macs``
        is then the mean cost of an image.
    """
    network = model.network if isinstance(model, RoutedExperts) else model
    count = network.num_experts

    def predictions(images: Tensor) -> Tensor:
        """Classes by each expert alone, by the first i together, and the gates: [N, 3K - 1]."""
        if isinstance(model, RoutedExperts):
            gates, logits = model.gates_of_all(images)
        else:
            gates, logits = images.new_zeros(0, len(images)), network(images)
        stacked = torch.stack([z.float() for z in logits])
        alone, together = stacked.argmax(2), stacked.cumsum(0).argmax(2)
        return torch.cat([alone.double(), together.double(), gates.double()]).t()

    found = test.run(predictions).t()
    alone, together, gates = (
        found[:count].long(),
        found[count : 2 * count].long(),
        found[2 * count :],
    )
    report: dict[str, Any] = {
        "experts": {
            "alone": [_accuracy(p, test) for p in alone],
            "first": [_accuracy(p, test) for p in together],
        }
    }
    if not isinstance(model, RoutedExperts):
        return report

    macs = model.macs(test.input_shape)
    group = shot_groups(test.class_counts, test.rule)[test.labels]  # type: ignore[arg-type]

    def routed(probability: float) -> dict[str, Any]:
        used = experts_used(gates, probability)
        predicted = together.gather(0, (used - 1).unsqueeze(0)).squeeze(0)
        shares = {"overall": _shares(used, count)}
        shares |= {name: _shares(used[group == i], count) for i, name in enumerate(GROUPS)}
        mean_macs = sum(share * cost for share, cost in zip(shares["overall"], macs, strict=True))
        return {
            "threshold": probability,
            "experts": float(used.double().mean()),
            "macs": round(mean_macs),
            "shares": shares,
            "accuracy": _accuracy(predicted, test),
        }

    def without_shares(row: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in row.items() if k != "shares"}

    chosen = routed(threshold)
    report["macs"] = chosen["macs"]
    report["routing"] = {
        **chosen,
        "macs_of_all": macs[-1],
        **_seconds(model, threshold, test),
        "curve": [
            {k: v for k, v in routed(p).items() if k != "shares"}
            for p in sorted({*CURVE, threshold})
        ],
    }
    return report


def experts_used(gates: Tensor, probability: float) -> Tensor:
    """How many experts each image is shown to: gates ``[K - 1, N]`` -> int64 ``[N]``.

    Args:
        gates: logits of all routers.
        probability: an image goes on while its gate's probability is above it.
    """
    if probability <= 0:
        on = torch.ones_like(gates, dtype=torch.bool)
    elif probability >= 1:
        on = torch.zeros_like(gates, dtype=torch.bool)
    else:
        on = gates > math.log(probability / (1 - probability))
    return 1 + on.long().cumprod(0).sum(0)


def _accuracy(predicted: Tensor, test: TestSet) -> dict[str, float | None]:
    shots = shot_accuracy(predicted, test.labels, test.class_counts, test.rule)  # type: ignore[arg-type]
    fractions = {name: getattr(shots, name) for name in ("overall", *GROUPS)}
    return {k: None if v is None else 100 * v for k, v in fractions.items()}


def _shares(used: Tensor, experts: int) -> list[float]:
    """The share of images by number of experts, 1 to K."""
    if len(used) == 0:
        return [0.0] * experts
    counts = torch.bincount(used - 1, minlength=experts)
    return [float(c) for c in counts.double() / len(used)]


def _seconds(model: RoutedExperts, threshold: float, test: TestSet) -> dict[str, float]:
    """Measured seconds of the whole test set, routed and with all experts, in turns."""
    logit = math.log(threshold / (1 - threshold))
    sides = {
        "seconds": lambda x: model(x, logit).logits,
        "seconds_of_all": model.network.predict,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(TIMED_ROUNDS):
        for name, side in sides.items():
            began = time.perf_counter()
            test.run(side)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in times.items()}
