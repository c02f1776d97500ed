"""What long-tailed methods derive from class counts, accuracies and epochs, in float64."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from . import _checks
from ._checks import ClassCounts

Preset: TypeAlias = Literal["official", "paper"]
Schedule: TypeAlias = Literal["linear", "convex", "concave"]

SCHEDULES = ("linear", "convex", "concave")

__all__ = [
    "diversity_temperature",
    "effective_number_weight",
    "expert_weight",
    "instance_schedule",
    "instance_start",
    "instance_weight",
    "inverse_frequency_weight",
    "ldam_margin",
    "log_prior",
]


def effective_number_weight(counts: ClassCounts, beta: float = 0.9999) -> Tensor:
    r"""Class weights by the effective number of samples, with sum C.

    .. math:: w_c \propto (1 - \beta) / (1 - \beta^{n_c})

    Args:
        counts: training images a class, `[C]`, > 0.
        beta: in 0..1. 0 gives ones.

    Returns:
        float64 `[C]`.

    Raises:
        ValueError, TypeError: for counts <= 0 or a beta outside [0, 1).

    Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019.
    """
    n = _checks.class_counts("effective_number_weight", counts, "counts")
    if not 0 <= beta < 1:
        raise ValueError(f"`effective_number_weight`: expected `beta` in [0, 1), got {beta}")
    log_beta = math.log(beta) if beta > 0 else -math.inf
    weight = (1 - beta) / -torch.expm1(n * log_beta)
    return weight * (len(n) / weight.sum())


def inverse_frequency_weight(counts: ClassCounts) -> Tensor:
    r"""Class weights proportional to 1 / n_c, with sum C: float64 `[C]`.

    Source: the deferred re-weighting of the LDAM paper (Cao et al., NeurIPS 2019, sec. 3.3), whose
    code uses `effective_number_weight`.
    """
    n = _checks.class_counts("inverse_frequency_weight", counts, "counts")
    return (1 / n) * (len(n) / (1 / n).sum())


def ldam_margin(counts: ClassCounts, max_m: float = 0.5) -> Tensor:
    r"""LDAM's margins, largest for the rarest class.

    .. math:: m_c = m_{max} \, (n_c / \min_k n_k)^{-1/4}

    Args:
        counts: training images a class, `[C]`, > 0.
        max_m: the largest margin, in cosine units, > 0.

    Returns:
        float64 `[C]`.

    Raises:
        ValueError, TypeError: for counts or a `max_m` <= 0.

    Source: Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss",
    NeurIPS 2019, eq. 13.
    """
    n = _checks.class_counts("ldam_margin", counts, "counts")
    margin = n**-0.25
    return margin * (_checks.positive("ldam_margin", "max_m", max_m) / margin.max())


def log_prior(counts: ClassCounts) -> Tensor:
    """log(n_c / N): float64 `[C]`."""
    n = _checks.class_counts("log_prior", counts, "counts")
    return (n / n.sum()).log()


def diversity_temperature(
    counts: ClassCounts,
    base_temperature: float = 1.0,
    reweight_factor: float = 0.05,
    *,
    preset: Preset = "official",
) -> Tensor:
    r"""RIDE's temperature of each class, largest (= eta) for the largest class.

    .. math::
        \psi_c = \gamma C n_c / N + 1 - \gamma, \quad
        T_c = \eta \psi_c / \max_k \psi_k \ \text{(official)}, \quad
        T_c = \eta (\psi_c + 1 - \max_k \psi_k) \ \text{(paper)}

    Args:
        counts: training images a class, `[C]`, > 0.
        base_temperature: eta > 0.
        reweight_factor: gamma in 0..1: 0.05 for CIFAR, 0.02 for ImageNet-LT, 0.015 for iNaturalist.
        preset: the released code's form or the paper's.

    Returns:
        float64 `[C]`.

    Raises:
        ValueError, TypeError: for arguments out of range, and where the paper's form is not > 0.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts",
    ICLR 2021, eq. 3, and its code.
    """
    op = "diversity_temperature"
    n = _checks.class_counts(op, counts, "counts")
    eta = _checks.positive(op, "base_temperature", base_temperature)
    if not 0 <= reweight_factor <= 1:
        raise ValueError(f"`{op}`: expected `reweight_factor` in 0..1, got {reweight_factor}")
    check_preset(op, preset)
    psi = reweight_factor * len(n) * n / n.sum() + 1 - reweight_factor
    if preset == "official":
        return eta * psi / psi.max()
    temperature = eta * (psi + 1 - psi.max())
    if bool(temperature.min() <= 0):
        raise ValueError(
            f"`{op}`: expected the paper's form to give temperatures > 0, got "
            f"{float(temperature.min()):.3g}; take a smaller `reweight_factor`"
        )
    return temperature


def expert_weight(
    student_acc: float | Tensor,
    expert_acc: float | Tensor,
    alpha: float = 0.6,
    *,
    clamp: bool = True,
) -> Tensor:
    r"""LFME's weight of an expert's distillation loss: 1, then falling as the student catches up.

    .. math::
        w = 1 \text{ if } A_M \le \alpha A_E, \text{ else } \frac{A_E - A_M}{A_E (1 - \alpha)}

    Args:
        student_acc: accuracy of the student on the expert's classes, any shape.
        expert_acc: accuracy of the expert, in the same unit. An expert at 0 has weight 1 until
            the student passes it.
        alpha: in [0, 1); 0.6 in the paper, 0.3 in the released configuration.
        clamp: stop at 0 when the student passes the expert, as the code does. The paper's formula
            goes negative.

    Returns:
        float64, of the accuracies' broadcast shape.

    Raises:
        ValueError: for an alpha outside [0, 1) or a negative accuracy.

    Source: Xiang et al., "Learning from multiple experts", ECCV 2020, sec. 4.2.
    """
    op = "expert_weight"
    if not 0 <= alpha < 1:
        raise ValueError(f"`{op}`: expected `alpha` in [0, 1), got {alpha}")
    student = torch.as_tensor(student_acc, dtype=torch.float64)
    expert = torch.as_tensor(expert_acc, dtype=torch.float64)
    for name, accuracy in (("student_acc", student), ("expert_acc", expert)):
        if not bool((accuracy >= 0).all()):
            raise ValueError(f"`{op}`: expected `{name}` >= 0, got {float(accuracy.min())}")
    falling = (expert - student) / (expert * (1 - alpha))
    weight = torch.where(student <= alpha * expert, 1.0, falling)
    return weight.clamp(min=0) if clamp else weight


def instance_weight(
    confidence: Tensor,
    subset: Tensor,
    subset_mean_count: ClassCounts,
    epoch: float,
    epochs: float,
    schedule: Schedule = "linear",
    *,
    labels: Tensor | None = None,
    preset: Preset = "paper",
    printed: bool = False,
) -> Tensor:
    r"""LFME's self-paced weight of every training image at an epoch.

    `instance_schedule` of `instance_start`. The paper's form stays within [0, 1] and reaches 1
    after `epochs`; the official code's (`preset="official"`) reaches 1 at `epochs / 2` and goes on.

    Args:
        confidence: probability the expert gives the true class, `[N]`.
        subset: int64 `[N]`, index of each image's subset.
        subset_mean_count: mean number of images a class in each subset, `[L]`.
        epoch: epochs trained so far, 0 .. epochs.
        epochs: epochs in all.
        schedule: "linear", "convex" or "concave".
        labels: int64 `[N]`, needed for `preset="official"`.
        preset: "paper" or "official".
        printed: the concave schedule as printed, without its constant term.

    Returns:
        float64 `[N]`.

    Raises:
        ValueError, TypeError, IndexError: for arguments that do not fit.

    Source: Xiang et al., "Learning from multiple experts", ECCV 2020, sec. 4.3 and Table 4.
    """
    start = instance_start(confidence, subset, subset_mean_count, labels=labels, preset=preset)
    if preset == "official":
        return instance_schedule(start, epoch, epochs / 2, schedule, printed=printed, clip=False)
    return instance_schedule(start, epoch, epochs, schedule, printed=printed)


def instance_start(
    confidence: Tensor,
    subset: Tensor,
    subset_mean_count: ClassCounts,
    *,
    labels: Tensor | None = None,
    preset: Preset = "paper",
) -> Tensor:
    r"""LFME's weight of every training image before the first epoch.

    .. math::
        v_i = p_i r_l \text{ (paper)}, \quad
        v_i = r_l + (1 - r_l) \frac{p_i - \min p}{\max p - \min p} \text{ (official)}, \quad
        r_l = N_{S_{min}} / N_{S_l}

    with the minimum and maximum over the images of the same class; a class whose images all have
    the same confidence starts at 1 (NaN in the official code, whose r is 1, 12/53, 12/230).

    Args and Raises: as `instance_weight`. Returns: float64 `[N]`.
    """
    op = "instance_start"
    check_preset(op, preset)
    mean_count = _checks.class_counts(op, subset_mean_count, "subset_mean_count")
    p = _checks.tensor(op, "confidence", confidence).detach().to(torch.float64)
    mean_count = mean_count.to(p.device)
    if p.dim() != 1:
        raise ValueError(f"`{op}`: expected `confidence` to be [N], got {list(p.shape)}")
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"`{op}`: expected `confidence` to be probabilities in 0..1")
    _check_index(op, "subset", subset, p, len(mean_count))
    ratio = (mean_count.min() / mean_count)[subset]
    if preset == "paper":
        return p * ratio
    if labels is None:
        raise ValueError(f"`{op}`: expected `labels` where `preset` is 'official'")
    _check_index(op, "labels", labels, p, None)
    classes = int(labels.max()) + 1 if labels.numel() else 0
    low = p.new_full((classes,), math.inf).scatter_reduce(0, labels, p, "amin")[labels]
    high = p.new_full((classes,), -math.inf).scatter_reduce(0, labels, p, "amax")[labels]
    easiness = torch.where(high > low, (p - low) / (high - low), 1.0)
    return ratio + (1 - ratio) * easiness


def instance_schedule(
    start: Tensor,
    epoch: float,
    epochs: float,
    schedule: Schedule = "linear",
    *,
    printed: bool = False,
    clip: bool = True,
) -> Tensor:
    r"""LFME's growth of weights `start` (v) to 1, with e of E epochs done.

    .. math::
        (1 - v) e/E + v, \quad
        1 - (1 - v) \cos(\tfrac{e}{E} \tfrac{\pi}{2}), \quad
        (1 - v) \log_2(1 + e/E) + v

    (linear, convex, concave). The paper and the code lack the last "+ v"; `printed=True` does too.

    Args:
        start: weights at e = 0, any shape.
        epoch: e >= 0.
        epochs: E > 0.
        schedule: "linear", "convex" or "concave".
        printed: the concave form without "+ v".
        clip: keep the result in [0, 1].

    Returns:
        float64, of the shape of `start`.

    Raises:
        ValueError: for an unknown schedule, e < 0 or E <= 0.

    Source: Xiang et al., "Learning from multiple experts", ECCV 2020, Table 4.
    """
    op = "instance_schedule"
    _checks.positive(op, "epochs", epochs)
    if epoch < 0:
        raise ValueError(f"`{op}`: expected `epoch` >= 0, got {epoch}")
    v = _checks.tensor(op, "start", start).to(torch.float64)
    done = epoch / epochs
    if schedule == "linear":
        weight = (1 - v) * done + v
    elif schedule == "convex":
        weight = 1 - (1 - v) * math.cos(done * math.pi / 2)
    elif schedule == "concave":
        weight = (1 - v) * math.log2(1 + done) + (0 if printed else v)
    else:
        raise ValueError(f"`{op}`: expected `schedule` to be one of {SCHEDULES}, got {schedule!r}")
    return weight.clamp(0, 1) if clip else weight


def check_preset(op: str, preset: object) -> None:
    """One of "official", "paper"."""
    if preset not in ("official", "paper"):
        raise ValueError(f"`{op}`: expected `preset` to be 'official' or 'paper', got {preset!r}")


def _check_index(op: str, name: str, value: object, like: Tensor, size: int | None) -> None:
    x = _checks.tensor(op, name, value)
    if x.dtype != torch.int64:
        raise TypeError(f"`{op}`: expected `{name}` to be int64, got {x.dtype}")
    if x.shape != like.shape:
        raise ValueError(
            f"`{op}`: expected `{name}` to be [N] = {list(like.shape)}, got {list(x.shape)}"
        )
    _checks.same_device(op, name, x, like)
    if x.numel() == 0:
        return
    low, high = (int(v) for v in torch.aminmax(x))
    if low < 0 or (size is not None and high >= size):
        upper = "" if size is None else f"..{size - 1}"
        raise IndexError(f"`{op}`: expected `{name}` in 0{upper}, got {low if low < 0 else high}")
