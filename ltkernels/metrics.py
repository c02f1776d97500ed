"""Long-tailedness, grouped accuracy, calibration, and bias and variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from . import _checks
from ._checks import ClassCounts

__all__ = [
    "BiasVariance",
    "Reliability",
    "ShotAccuracy",
    "bias_variance",
    "class_accuracy",
    "expected_calibration_error",
    "feature_distance",
    "gini_coefficient",
    "imbalance_absolute_deviation",
    "imbalance_divergence",
    "imbalance_ratio",
    "reliability",
    "shot_accuracy",
    "shot_groups",
]


# --- how long-tailed a data set is (LFME, sec. 3) -------------------------------------------------


def imbalance_ratio(counts: ClassCounts) -> float:
    """max n_c / min n_c of the training images a class `[C]`."""
    n = _checks.class_counts("imbalance_ratio", counts, "counts")
    return float(n.max() / n.min())


def imbalance_divergence(counts: ClassCounts, base: float = 2) -> float:
    r"""KL divergence of the class distribution from the uniform one.

    .. math:: \sum_c p_c \log_{base} (p_c C), \quad p_c = n_c / N

    Args:
        counts: training images a class, `[C]`, > 0.
        base: of the logarithm, > 1. LFME's Table 1 has base 2. (Its text prints 1/N for the
            uniform distribution; 1/C gives its figures.)

    Returns:
        0 for a balanced set, at most log(C).

    Raises:
        ValueError, TypeError: for counts <= 0 or a base <= 1.

    Source: Xiang et al., "Learning from multiple experts", ECCV 2020, sec. 3.
    """
    n = _checks.class_counts("imbalance_divergence", counts, "counts")
    if not base > 1:
        raise ValueError(f"`imbalance_divergence`: expected `base` > 1, got {base}")
    p = n / n.sum()
    return float((p * (p * len(n)).log()).sum()) / math.log(base)


def imbalance_absolute_deviation(counts: ClassCounts) -> float:
    """sum_c |1/C - n_c/N|: 0 for a balanced set, below 2 (LFME, sec. 3)."""
    n = _checks.class_counts("imbalance_absolute_deviation", counts, "counts")
    return float((1 / len(n) - n / n.sum()).abs().sum())


def gini_coefficient(counts: ClassCounts) -> float:
    """sum_i (2i - C - 1) n_(i) / (C N), n_(1) <= .. <= n_(C): 0 for a balanced set, below 1."""
    n = _checks.class_counts("gini_coefficient", counts, "counts").sort().values
    rank = torch.arange(1, len(n) + 1, dtype=n.dtype)
    return float(((2 * rank - len(n) - 1) * n).sum() / (len(n) * n.sum()))


# --- many, medium, few ----------------------------------------------------------------------------

Rule: TypeAlias = Literal["kang", "liu", "sharma", "wang", "A", "B", "C", "D"]

# Many: n >= first. Few: n <= second. Counts are whole numbers, so > 100 is >= 101.
SHOT_RULES: dict[str, tuple[int, int]] = {
    "kang": (101, 19),  # A: RIDE, BKD, ECL, classifier-balancing, SADE, PaCo
    "liu": (100, 20),  # B: OLTR, LFME, NCL
    "sharma": (100, 19),  # C: class-balanced experts
    "wang": (101, 20),  # D: appendix of RIDE
}
SHOT_RULE_LETTERS = {"A": "kang", "B": "liu", "C": "sharma", "D": "wang"}


@dataclass(frozen=True)
class ShotAccuracy:
    """Accuracies as fractions (None: no test image of the group) and classes in each group."""

    many: float | None
    medium: float | None
    few: float | None
    overall: float | None
    many_classes: int
    medium_classes: int
    few_classes: int
    rule: str

    @property
    def sizes(self) -> dict[str, int]:
        """Classes in each group, by the group's name."""
        return {"many": self.many_classes, "medium": self.medium_classes, "few": self.few_classes}


def shot_groups(train_counts: ClassCounts, rule: Rule = "kang") -> Tensor:
    """The group of each class, int64 `[C]`: 0 many, 1 medium, 2 few. See `shot_accuracy`."""
    n = _checks.class_counts("shot_groups", train_counts, "train_counts")
    low_many, high_few = SHOT_RULES[_rule_name("shot_groups", rule)]
    return 1 - (n >= low_many).long() + (n <= high_few).long()


def class_accuracy(pred: Tensor, target: Tensor, classes: int) -> Tensor:
    """Fraction of each class's images that are predicted right, float64 `[C]`; NaN for no image."""
    _check_labels("class_accuracy", pred, target, classes)
    total = torch.bincount(target, minlength=classes)
    right = torch.bincount(target[pred == target], minlength=classes)
    return right.double() / total.double()


def shot_accuracy(
    pred: Tensor,
    target: Tensor,
    train_counts: ClassCounts,
    rule: Rule = "kang",
    *,
    average: Literal["class", "sample"] = "class",
) -> ShotAccuracy:
    """Accuracy on the classes with many, medium and few training images, and overall.

    | rule | many | medium | few | who |
    |---|---|---|---|---|
    | "kang" = "A" | > 100 | 20..100 | < 20 | RIDE, BKD, ECL, SADE, PaCo |
    | "liu" = "B" | >= 100 | 21..99 | <= 20 | OLTR, LFME, NCL |
    | "sharma" = "C" | >= 100 | 20..99 | < 20 | class-balanced experts |
    | "wang" = "D" | > 100 | 21..100 | <= 20 | appendix of RIDE |

    Args:
        pred: predicted classes, int64 `[N]`.
        target: true classes, int64 `[N]`.
        train_counts: training images a class, `[C]`, > 0.
        rule: where the groups' borders lie.
        average: over a group's classes (those with a test image), as the field does, or over its
            test images, as NCL does. The same for a balanced test set.

    Returns:
        Fractions; "overall" is the share of all images that are right.

    Raises:
        ValueError, TypeError, IndexError: for arguments that do not fit.
    """
    op = "shot_accuracy"
    group = shot_groups(train_counts, rule).to(target.device)
    if average not in ("class", "sample"):
        raise ValueError(f"`{op}`: expected `average` to be 'class' or 'sample', got {average!r}")
    _check_labels(op, pred, target, len(group))
    accuracy = class_accuracy(pred, target, len(group))
    share = torch.bincount(target, minlength=len(group)).double()  # test images a class
    weight = (share > 0).double() if average == "class" else share

    def mean(members: Tensor) -> float | None:
        members = members & (share > 0)
        if not bool(members.any()):
            return None
        return float((accuracy * weight)[members].sum() / weight[members].sum())

    sizes = [int(k) for k in torch.bincount(group, minlength=3)]
    return ShotAccuracy(
        many=mean(group == 0),
        medium=mean(group == 1),
        few=mean(group == 2),
        overall=float((pred == target).double().mean()) if target.numel() else None,
        many_classes=sizes[0],
        medium_classes=sizes[1],
        few_classes=sizes[2],
        rule=_rule_name(op, rule),
    )


def _rule_name(op: str, rule: str) -> str:
    name = SHOT_RULE_LETTERS.get(rule, rule)
    if name not in SHOT_RULES:
        raise ValueError(
            f"`{op}`: expected `rule` to be one of {(*SHOT_RULES, *SHOT_RULE_LETTERS)}, "
            f"got {rule!r}"
        )
    return name


# --- calibration ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """The bins of a reliability diagram; empty bins have accuracy and confidence 0."""

    edges: Tensor  # float64 [bins + 1]; bin m is (edges[m], edges[m + 1]]
    count: Tensor  # int64 [bins]
    accuracy: Tensor  # float64 [bins]
    confidence: Tensor  # float64 [bins]

    @property
    def gap(self) -> Tensor:
        """|accuracy - confidence|, float64 `[bins]`."""
        return (self.accuracy - self.confidence).abs()

    @property
    def expected_calibration_error(self) -> float:
        """Mean gap over the binned samples; NaN if there are none."""
        share = self.count.double() / self.count.sum()
        return float((share * self.gap).sum())

    @property
    def maximum_calibration_error(self) -> float:
        """The largest gap of a bin."""
        return float(self.gap.max())


def reliability(probs: Tensor, target: Tensor, bins: int = 15) -> Reliability:
    """Count, accuracy and mean confidence in `bins` equal bins (lo, hi] of the confidence.

    The confidence of a sample is its largest probability. One that rounding put above 1 counts
    as 1; one of exactly 0 lies in no bin.

    Args:
        probs: probabilities `[N, C]`, rows need not be normalised.
        target: int64 `[N]`.
        bins: number of bins.

    Raises:
        ValueError, TypeError, IndexError: for arguments that do not fit.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    op = "reliability"
    _checks.logits(op, "probs", probs)
    _checks.class_target(op, "target", target, probs)
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"`{op}`: expected `bins` to be an int >= 1, got {bins!r}")
    confidence, pred = probs.detach().double().max(dim=1)
    if probs.shape[0] and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-2):
        raise ValueError(f"`{op}`: expected `probs` to be probabilities, not logits")
    confidence = confidence.clamp(max=1)
    edges = torch.arange(bins + 1, dtype=torch.float64, device=probs.device) / bins
    index = torch.bucketize(confidence, edges) - 1  # right edges belong to their bin
    binned = index >= 0
    index, confidence = index[binned], confidence[binned]
    count = torch.bincount(index, minlength=bins)
    right = (pred == target)[binned].double()
    divisor = count.clamp(min=1)
    return Reliability(
        edges=edges,
        count=count,
        accuracy=torch.bincount(index, right, minlength=bins) / divisor,
        confidence=torch.bincount(index, confidence, minlength=bins) / divisor,
    )


def expected_calibration_error(probs: Tensor, target: Tensor, bins: int = 15) -> float:
    r"""Expected calibration error, a fraction.

    .. math:: \sum_m \frac{|B_m|}{N} |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|

    over equal bins (lo, hi] of the largest probability. Args and Raises: as `reliability`.

    Source: Guo et al., ICML 2017; ECL's eq. 13 is misprinted.
    """
    return reliability(probs, target, bins).expected_calibration_error


# --- bias and variance, feature distance ----------------------------------------------------------


@dataclass(frozen=True)
class BiasVariance:
    """Per image: 0-1 bias, variance, and the models' most frequent prediction."""

    bias: Tensor  # float64 [N]
    variance: Tensor  # float64 [N]
    main_prediction: Tensor  # int64 [N]


def bias_variance(predictions: Tensor, target: Tensor) -> BiasVariance:
    r"""Bias and variance of a learning algorithm under 0-1 loss.

    .. math::
        y_m = \text{mode}_D(y_D), \quad B = 1[y_m \ne y^*], \quad V = E_D\, 1[y_D \ne y_m]

    The error is not B + V: on biased images variance lowers it.

    Args:
        predictions: int64 `[M, N]`, the classes that M models trained on M draws predict.
        target: int64 `[N]`.

    Returns:
        Bias, variance and main prediction (of a tie: the smallest class), each `[N]`.

    Raises:
        ValueError, TypeError, IndexError: for arguments that do not fit.

    Source: Domingos, "A unified bias-variance decomposition", ICML 2000, as in RIDE, sec. 1.
    """
    op = "bias_variance"
    votes = _checks.tensor(op, "predictions", predictions)
    if votes.dtype != torch.int64:
        raise TypeError(f"`{op}`: expected `predictions` to be int64, got {votes.dtype}")
    if votes.dim() != 2 or votes.shape[0] == 0:
        raise ValueError(
            f"`{op}`: expected `predictions` to be [M, N] with M >= 1, got {list(votes.shape)}"
        )
    _check_labels(op, votes[0], target, None)
    # The number of models that agree with model m on image n: [M, N]. Equal votes go to the
    # smallest class.
    agree = torch.stack([(votes == vote).sum(dim=0) for vote in votes])
    candidates = torch.where(agree == agree.amax(dim=0), votes, torch.iinfo(torch.int64).max)
    main = candidates.amin(dim=0)
    return BiasVariance(
        bias=(main != target).double(),
        variance=(votes != main).double().mean(dim=0),
        main_prediction=main,
    )


def feature_distance(features: Tensor, target: Tensor, classes: int) -> Tensor:
    r"""Mean distance of two experts' features, for each pair of experts and each class.

    .. math:: d^{mn}_c = \frac{1}{|S_c|} \sum_{i \in S_c} \lVert v^m_i - v^n_i \rVert_2

    Args:
        features: `[K, N, D]` (or a sequence of K tensors `[N, D]` stacked), K >= 2.
        target: int64 `[N]`.
        classes: C.

    Returns:
        float64 `[K (K - 1) / 2, C]`, pairs in the order (0, 1), (0, 2), .., (1, 2), ..; NaN for a
        class without an image.

    Raises:
        ValueError, TypeError, IndexError: for arguments that do not fit.

    Source: Xu et al., "Towards effective collaborative learning in long-tailed recognition",
    IEEE TMM 2023, eq. 12.
    """
    op = "feature_distance"
    x = _checks.tensor(op, "features", features)
    if x.dim() != 3 or x.shape[0] < 2:
        raise ValueError(
            f"`{op}`: expected `features` to be [K, N, D] with K >= 2, got {list(x.shape)}"
        )
    if not x.is_floating_point():
        raise TypeError(f"`{op}`: expected `features` to be floating, got {x.dtype}")
    _check_labels(op, target, target, classes)
    if target.shape[0] != x.shape[1]:
        raise ValueError(
            f"`{op}`: expected `target` to be [N] = [{x.shape[1]}], got {list(target.shape)}"
        )
    x = x.detach().double()
    total = torch.bincount(target, minlength=classes)
    experts = range(x.shape[0])
    return torch.stack(
        [
            torch.bincount(target, (x[m] - x[n]).norm(dim=1), minlength=classes) / total
            for m in experts
            for n in experts
            if m < n
        ]
    )


def _check_labels(op: str, pred: object, target: object, classes: int | None) -> None:
    for name, value in (("pred", pred), ("target", target)):
        x = _checks.tensor(op, name, value)
        if x.dtype != torch.int64:
            raise TypeError(f"`{op}`: expected `{name}` to be int64 classes, got {x.dtype}")
        if x.dim() != 1:
            raise ValueError(f"`{op}`: expected `{name}` to be [N], got {list(x.shape)}")
    pred, target = _checks.tensor(op, "pred", pred), _checks.tensor(op, "target", target)
    if pred.shape != target.shape:
        raise ValueError(
            f"`{op}`: expected `pred` to be [N] = {list(target.shape)}, got {list(pred.shape)}"
        )
    _checks.same_device(op, "pred", pred, target)
    if target.numel() == 0:
        return
    low, high = (int(v) for v in torch.aminmax(target))
    if low < 0 or (classes is not None and high >= classes):
        upper = "" if classes is None else f"..{classes - 1}"
        raise IndexError(f"`{op}`: expected `target` in 0{upper}, got {low if low < 0 else high}")
