"""Definitions of `kd_loss` and `bkd_loss`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from .._checks import Reduction, Temperature, TemperatureKind
from ._rows import NEG_INF, empty_rows, log_softmax_rows, reduce, weighted


def kd_loss(
    student: Tensor,
    teacher: Tensor | Sequence[Tensor],
    temperature: Temperature = 1.0,
    *,
    classes: Tensor | Sequence[Tensor] | None = None,
    subset_weight: Sequence[float] | Tensor | None = None,
    sample_weight: Tensor | None = None,
    t2: bool | float = True,
    detach_teacher: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Knowledge distillation: the KL divergence from the teacher to the student.

    .. math::
        L_n = v_n T^2 \sum_c q_{nc} (\log q_{nc} - \log p_{nc}), \quad
        p = \mathrm{softmax}(z^s / T), \quad q = \mathrm{softmax}(z^t / T)

    With `classes`, c runs over a subset of the classes and so do both softmaxes; several subsets,
    each with its teacher, make the weighted sum of their divergences:

    .. math::
        L_n = v_n \sum_l w_l T^2 \, \mathrm{KL}\big(\mathrm{softmax}(z^{t_l} / T) \,\Vert\,
              \mathrm{softmax}(z^s|_{S_l} / T)\big)

    A term with q = 0 is 0. A student logit of -inf where q > 0 makes its row +inf; such a row has
    no gradient to the teacher. The gradient of a -inf logit is 0. A row whose student or teacher
    has no finite logit (of a subset) is NaN, in its loss and its gradients (of the subset), and no
    other row is (a -inf logit of a teacher that has finite ones keeps the gradient 0).

    Args:
        student: logits `[N, C]`.
        teacher: logits `[N, C]`; where `classes` is given `[N, S]`, or a sequence of L tensors
            `[N, S_l]`.
        temperature: a number, a one-element tensor, `[C]` (one a class column) or `[N, 1]` (one a
            sample); > 0.
        classes: int64 `[S]`, distinct columns of the student the teacher knows, or a sequence of L
            such tensors `[S_l]`, which may overlap. The student is re-normalised over each (LFME);
            a `[C]` temperature is gathered along.
        subset_weight: w, L numbers or a constant `[L]`; None for ones.
        sample_weight: v, `[N]`, multiplies the rows; "mean" still divides by N.
        t2: True for the factor T^2 (mean(T)^2 for `[C]`, over the classes of each subset; per row
            for `[N, 1]`), False for none, a number for that number.
        detach_teacher: whether the teachers are constants.
        reduction: "mean" over N, "sum", or "none" (`[N]`).

    Returns:
        The loss, float32 (float64 if a logit tensor is), `[]` or `[N]`. Of zero rows: NaN for
        "mean", 0 for "sum".

    Raises:
        ValueError, TypeError, IndexError: for an argument that does not fit.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015; with `classes`
    and `t2=False`: Xiang et al., "Learning from multiple experts", ECCV 2020, sec. 4.2.
    """
    kind, teachers, subsets = _checks.kd_loss(
        student, teacher, temperature, classes, subset_weight, sample_weight, t2, reduction
    )
    if classes is not None:
        _checks.kd_classes(classes, student.shape[1])
    dtype = _checks.compute_dtype(student, *teachers)
    student, temperature = student.to(dtype), _as(dtype, temperature, kind)
    weights = _weights(subset_weight, len(teachers), dtype)

    row_loss = student.new_zeros(student.shape[0])
    for i, (t, w) in enumerate(zip(teachers, weights, strict=True)):
        t = t.to(dtype).detach() if detach_teacher else t.to(dtype)
        s, part_temperature = student, temperature
        if subsets:
            s = student.index_select(1, subsets[i])
            if kind == "class" and isinstance(temperature, Tensor):
                part_temperature = temperature.index_select(0, subsets[i])
        divergence = _kl_terms(s, t, part_temperature).sum(dim=1)
        row_loss = row_loss + w * _factor(t2, part_temperature, kind) * divergence
    if sample_weight is not None:
        row_loss = row_loss * sample_weight.to(dtype)
    return reduce(row_loss, reduction)


def bkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    temperature: Temperature = 2.0,
    alpha: float = 1.0,
    *,
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Balanced knowledge distillation: cross-entropy plus KL to a class-balanced teacher.

    .. math::
        L_n = -\log \mathrm{softmax}(z^s_n)_{y_n}
              + \alpha T^2 \sum_c q_{nc} (\log q_{nc} - \log p_{nc}), \quad
        p = \mathrm{softmax}(z^s / T), \quad
        q = \frac{w \odot \mathrm{softmax}(z^t / T)}{\sum_c w_c \mathrm{softmax}(z^t / T)_c}
          = \mathrm{softmax}(z^t / T + \log w)

    Everything but the student's logits is a constant (a temperature that requires its gradient
    gets it). For -inf logits see `kd_loss`; a label probability of 0 drops its term likewise.

    Args:
        student: logits `[N, C]`.
        teacher: logits `[N, C]`.
        target: class indices int64 `[N]`, or probabilities `[N, C]` (used as given).
        class_weight: `[C]`, >= 0; None is plain distillation.
        temperature: a number, a one-element tensor, `[C]` or `[N, 1]`; > 0. T^2 is as in `kd_loss`.
        alpha: factor of the distillation term. 0 leaves it out.
        target_b: mixup's second class indices, int64 `[N]`; then the cross-entropy is
            lam CE(target) + (1 - lam) CE(target_b).
        lam: mixup's share of `target`, a number, `[]` or `[N]`, in 0..1; given with `target_b`.
        reduction: "mean" over N, "sum", or "none" (`[N]`).

    Returns:
        The loss, float32 (float64 if a logit tensor is), `[]` or `[N]`.

    Raises:
        ValueError, TypeError, IndexError: for an argument that does not fit.

    Source: Zhang et al., "Balanced knowledge distillation for long-tailed learning",
    Neurocomputing 2023, eqs. 6-8.
    """
    kind = _checks.bkd_loss(
        student, teacher, target, class_weight, temperature, alpha, target_b, lam, reduction
    )
    dtype = _checks.compute_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.to(dtype).detach()

    log_prob = log_softmax_rows(student)
    if target.is_floating_point():
        row_loss = -weighted(target.to(dtype).detach(), log_prob).sum(dim=1)
    elif target_b is None or lam is None:
        row_loss = _nll(log_prob, target)
    else:
        share = torch.as_tensor(lam, dtype=dtype, device=student.device).detach()
        row_loss = weighted(share, _nll(log_prob, target))
        row_loss = row_loss + weighted(1 - share, _nll(log_prob, target_b))
    if alpha == 0:
        return reduce(row_loss, reduction)

    temperature = _as(dtype, temperature, kind)
    log_weight = None if class_weight is None else class_weight.detach().to(dtype).log()
    divergence = _kl_terms(student, teacher, temperature, log_weight).sum(dim=1)
    row_loss = row_loss + alpha * _factor(True, temperature, kind) * divergence
    return reduce(row_loss, reduction)


def kl_per_class(
    student: Tensor,
    teacher: Tensor,
    class_weight: Tensor | None = None,
    temperature: Temperature = 2.0,
) -> Tensor:
    """The terms of the distillation loss a class, `[C]`: means over N, without T^2.

    What the official `KDLoss` and `BKDLoss` return beside the loss. The arguments are those of
    `bkd_loss`.
    """
    dtype = _checks.compute_dtype(student, teacher)
    kind, _, _ = _checks.kd_loss(student, teacher, temperature, None, None, None, False, "mean")
    temperature = _as(dtype, temperature, kind)
    log_weight = None if class_weight is None else class_weight.detach().to(dtype).log()
    student, teacher = student.to(dtype), teacher.to(dtype).detach()
    return _kl_terms(student, teacher, temperature, log_weight).mean(dim=0)


def _kl_terms(
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature,
    log_weight: Tensor | None = None,
) -> Tensor:
    """q (log q - log p) with p = softmax(student / T), q = softmax(teacher / T + log w).

    0 where q = 0. [N, C], [N, C] -> [N, C].
    """
    log_q = log_softmax_rows(teacher, temperature, log_weight)
    # A NaN teacher makes the student's whole row NaN, its -inf logits included.
    empty = empty_rows(student) | log_q.isnan().any(dim=1, keepdim=True)
    log_p = log_softmax_rows(student, temperature, empty=empty)
    q = log_q.exp()
    # Where q > 0 = p the row is +inf whatever the teacher does: a constant to the teacher.
    infinite = ((q > 0) & (log_p == NEG_INF)).any(dim=1, keepdim=True)
    q, log_q = torch.where(infinite, q.detach(), q), torch.where(infinite, log_q.detach(), log_q)
    return q * torch.where(q == 0, 0.0, log_q - log_p)


def _weights(
    subset_weight: Sequence[float] | Tensor | None, subsets: int, dtype: torch.dtype
) -> Sequence[float | Tensor]:
    if subset_weight is None:
        return (1.0,) * subsets
    if isinstance(subset_weight, Tensor):
        return subset_weight.detach().to(dtype).unbind()
    return subset_weight


def _nll(log_prob: Tensor, target: Tensor) -> Tensor:
    """-log p_y of each row: [N, C], [N] -> [N]."""
    return -log_prob.gather(1, target.unsqueeze(1)).squeeze(1)


def _as(dtype: torch.dtype, temperature: Temperature, kind: TemperatureKind) -> Temperature:
    """The temperature in the dtype of the arithmetic; a one-element tensor becomes 0-dim."""
    if not isinstance(temperature, Tensor):
        return temperature
    return temperature.to(dtype).reshape(()) if kind == "scalar" else temperature.to(dtype)


def _factor(t2: bool | float, temperature: Temperature, kind: TemperatureKind) -> float | Tensor:
    """The factor of the KL that `t2` asks for: a scalar, or `[N]` for a temperature a sample."""
    if t2 is False:
        return 1.0
    if t2 is not True:
        return t2
    if not isinstance(temperature, Tensor):
        return temperature * temperature
    if kind == "class":
        return temperature.mean().square()
    return temperature.square().squeeze(1) if kind == "sample" else temperature.square()
