"""Definitions of `collaborative_kd_loss` and `knowledge_balance_weight`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Direction, Experts, Reduction, Temperature
from ._rows import NEG_INF, log_softmax_rows, reduce, weighted
from .distillation import _as, _factor, _nll
from .diversity import pairwise_kl


def collaborative_kd_loss(
    expert_logits: Experts,
    temperature: Temperature = 1.0,
    *,
    sample_weight: Tensor | None = None,
    direction: Direction = "as_printed",
    detach_teacher: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Every expert learns from every other: the mean KL divergence over ordered pairs.

    .. math::
        L_n = \frac{1}{K (K - 1)} \sum_k \sum_{q \ne k}
              w^k_n \tau^2 \, KL(p^k_n \Vert p^q_n), \quad p^k = \mathrm{softmax}(z^k / \tau)

    Expert k is the student, q its teacher. Without weights and with gradients to both, the two
    directions are the same sum. On features `[N, D]` in place of logits it is ECL's eq. 8. One
    expert learns nothing: 0.

    A class that one expert has and another has not (a -inf logit) makes its row +inf, where the
    weight of the divergence is not 0; in such a row the first distribution of every divergence is
    a constant. A row without a finite logit for one expert is NaN, and no other row is.

    Args:
        expert_logits: K tensors `[N, C]` or one `[K, N, C]`.
        temperature: tau, a number, a one-element tensor, `[C]` or `[N, 1]`; > 0. tau^2 is
            mean(tau)^2 for `[C]`.
        sample_weight: w, `[K, N]`, the weight of each student's rows.
        direction: "as_printed" for KL(p^k || p^q), "teacher_first" for KL(p^q || p^k).
        detach_teacher: whether p^q is a constant.
        reduction: "mean" over N, "sum" (eq. 8 as printed), or "none" (`[N]`).

    Returns:
        The loss, float32 (float64 for float64 logits), `[]` or `[N]`. "mean" of no row is NaN.

    Raises:
        ValueError, TypeError: for an argument that does not fit.

    Source: Xu et al., "Towards effective collaborative learning in long-tailed recognition", IEEE
    Transactions on Multimedia 2023, eqs. 7-8. Times K it is the online distillation of Li et al.,
    "Nested collaborative learning for long-tailed visual recognition", CVPR 2022.
    """
    experts, kind = _checks.collaborative_kd_loss(
        expert_logits, temperature, sample_weight, direction, reduction
    )
    dtype = _checks.compute_dtype(*experts)
    experts = tuple(z.to(dtype) for z in experts)
    temperature = _as(dtype, temperature, kind)

    student_first = direction == "as_printed"
    divergence = pairwise_kl(
        experts,
        temperature,
        detach_first=detach_teacher and not student_first,
        detach_second=detach_teacher and student_first,
    )
    if sample_weight is not None:
        weight = sample_weight.to(dtype)
        divergence = {
            (k, q): weighted(weight[k if student_first else q], kl)
            for (k, q), kl in divergence.items()
        }
    row_loss = torch.stack(list(divergence.values())).sum(dim=0) / len(divergence)
    return reduce(row_loss * _factor(True, temperature, kind), reduction)


def knowledge_balance_weight(
    ref_logits: Tensor, cls_logits: Tensor, target: Tensor, *, eps: float = 1e-6
) -> Tensor:
    r"""How much an expert still has to learn of each sample, by its two heads; a constant.

    .. math::
        w_n = \frac{CE(z^{cls}_n / \sigma^{cls}_n, y_n)}{CE(z^{ref}_n / \sigma^{ref}_n, y_n)}

    with sigma the standard deviation of the row's logits (over C - 1). This is the right side of
    eq. 6, the one its text describes: large where the classification head lags behind the
    reference head. The left side is the reciprocal: exchange the two heads. A -inf logit takes its
    class out, of the deviation too; at the target it makes its head's cross-entropy +inf. A row
    without a finite logit is NaN.

    Args:
        ref_logits: logits of the reference head `[N, C]`.
        cls_logits: logits of the classification head `[N, C]`.
        target: class indices int64 `[N]`.
        eps: least sigma, and least divisor.

    Returns:
        w, float32 (float64 if a logit tensor is), `[N]`, >= 0, without gradient.

    Raises:
        ValueError, TypeError, IndexError: for an argument that does not fit.

    Source: Xu et al., "Towards effective collaborative learning in long-tailed recognition", IEEE
    Transactions on Multimedia 2023, eqs. 5-6.
    """
    return balance_weight(ref_logits, cls_logits, target, eps=eps).detach()


def balance_weight(
    ref_logits: Tensor,
    cls_logits: Tensor,
    target: Tensor,
    *,
    eps: float = 1e-6,
    unbiased: bool = True,
) -> Tensor:
    """`knowledge_balance_weight` with its gradient, and with sigma over C for `unbiased=False`."""
    _checks.knowledge_balance_weight(ref_logits, cls_logits, target, eps)
    dtype = _checks.compute_dtype(ref_logits, cls_logits)
    of_cls, of_ref = (
        _nll(_log_softmax_of_unit_deviation(z.to(dtype), eps, unbiased), target)
        for z in (cls_logits, ref_logits)
    )
    return of_cls / of_ref.clamp(min=eps)


def _log_softmax_of_unit_deviation(logits: Tensor, eps: float, unbiased: bool) -> Tensor:
    kept = logits != NEG_INF
    count = kept.sum(dim=1, keepdim=True)
    finite = torch.where(kept, logits, 0.0)
    mean = finite.sum(dim=1, keepdim=True) / count
    squares = torch.where(kept, finite - mean, 0.0).square().sum(dim=1, keepdim=True)
    variance = squares / (count - int(unbiased)).clamp(min=1)
    # Clamped before the root, whose derivative at 0 is infinite.
    return log_softmax_rows(logits, variance.clamp(min=eps * eps).sqrt())
