"""Definitions of `ride_loss` and `diversity_loss`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from .. import _checks
from .._checks import ExpertReduction, Experts, Reduction, Temperature
from ._rows import NEG_INF, log_softmax_rows, reduce
from .adjusted_cross_entropy import adjusted_cross_entropy
from .distillation import _as, _factor, _kl_terms


def ride_loss(
    expert_logits: Experts,
    target: Tensor,
    *,
    margin: Tensor | None = None,
    class_weight: Tensor | None = None,
    temperature: Temperature = 1.0,
    diversity_factor: float = -0.45,
    collaborative: bool = False,
    pairwise: bool = False,
    expert_reduction: ExpertReduction = "sum",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""RIDE's loss of K experts: margin cross-entropies plus a (negative) share of their diversity.

    .. math::
        L = \sum_k \Big[ CE_w(z^k - m_y e_y, y)
            + \lambda \bar T^2 \, KL(\mathrm{softmax}(\bar z / T) \Vert \mathrm{softmax}(z^k / T))
            \Big], \quad \bar z = \mathrm{detach}\Big(\frac{1}{K} \sum_k z^k\Big)

    It is `adjusted_cross_entropy` of every expert plus `diversity_factor` times `diversity_loss`,
    whose rules for -inf logits hold term by term.

    Args:
        expert_logits: K tensors `[N, C]` or one `[K, N, C]`.
        target: class indices int64 `[N]`.
        margin: m, `[C]`, in units of the logits: s m_c where the logits carry a scale s.
        class_weight: w, `[C]`, >= 0, a constant; weighs the cross-entropies alone.
        temperature: a number, a one-element tensor, `[C]` (one a class column) or `[N, 1]` (one a
            sample); > 0. T-bar is its mean for `[C]`, and each row's own for `[N, 1]`.
        diversity_factor: lambda, < 0 to reward diversity. 0 leaves the term out.
        collaborative: one cross-entropy of the mean logits (gradient to all experts) in place of
            each expert's own, K times for "sum".
        pairwise: the paper's diversity, sum_{j != k} KL(p^k || p^j) / (K - 1), gradient to both.
        expert_reduction: "sum" or "mean" over the experts.
        reduction: "mean" (each cross-entropy over the sum of w_y, the divergence over N), "sum",
            "none" (`[N]`).

    Returns:
        The loss, float32 (float64 for float64 logits), `[]` or `[N]`. "mean" of no row is NaN.

    Raises:
        ValueError, TypeError, IndexError: for an argument that does not fit.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts",
    ICLR 2021, eqs. 2-4, in the form of its code; `pairwise` is eq. 2.
    """
    experts, _ = _checks.ride_loss(
        expert_logits,
        target,
        margin,
        class_weight,
        temperature,
        diversity_factor,
        expert_reduction,
        reduction,
    )
    dtype = _checks.compute_dtype(*experts)
    experts = tuple(z.to(dtype) for z in experts)
    classifiers = (mean_logits(experts),) * len(experts) if collaborative else experts
    cross_entropies = [
        adjusted_cross_entropy(
            z, target, margin=margin, class_weight=class_weight, reduction=reduction
        )
        for z in classifiers
    ]
    loss = over_experts(cross_entropies, expert_reduction)
    if diversity_factor == 0:
        return loss
    return loss + diversity_factor * diversity_loss(
        experts,
        temperature,
        pairwise=pairwise,
        expert_reduction=expert_reduction,
        reduction=reduction,
    )


def diversity_loss(
    expert_logits: Experts,
    temperature: Temperature = 1.0,
    *,
    pairwise: bool = False,
    t2: bool | float = True,
    expert_reduction: ExpertReduction = "sum",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""How far K experts are from their mean, or from each other: >= 0, and 0 where all are equal.

    .. math::
        D = \sum_k \bar T^2 \, KL(\mathrm{softmax}(\bar z / T) \Vert p^k)
        \quad \text{or, pairwise,} \quad
        D = \frac{1}{K - 1} \sum_k \sum_{j \ne k} \bar T^2 \, KL(p^k \Vert p^j), \quad
        p^k = \mathrm{softmax}(z^k / T)

    The mean z-bar of the logits is a constant (its distribution is where the sum is least, so that
    no gradient would pass it); the pairwise form has a gradient to both sides. One expert has no
    diversity: 0.

    A class that is -inf for one expert is -inf in the mean, and left out; its gradient is 0 for
    that expert. Pairwise, a class that one expert has and another has not makes its row +inf; in
    such a row the first distribution of every divergence is a constant. A row that has no finite
    logit for one expert, or none in the mean, is NaN, and no other row is.

    Args:
        expert_logits: K tensors `[N, C]` or one `[K, N, C]`.
        temperature: a number, a one-element tensor, `[C]` (one a class column) or `[N, 1]` (one a
            sample); > 0.
        pairwise: the paper's form.
        t2: True for the factor T^2 (mean(T)^2 for `[C]`, per row for `[N, 1]`), False for none,
            a number for that number.
        expert_reduction: "sum" or "mean" over the experts.
        reduction: "mean" over N, "sum", or "none" (`[N]`).

    Returns:
        The divergence, float32 (float64 for float64 logits), `[]` or `[N]`.

    Raises:
        ValueError, TypeError: for an argument that does not fit.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts",
    ICLR 2021, eq. 2, and its code.
    """
    experts, kind = _checks.diversity_loss(
        expert_logits, temperature, t2, expert_reduction, reduction
    )
    dtype = _checks.compute_dtype(*experts)
    experts = tuple(z.to(dtype) for z in experts)
    temperature = _as(dtype, temperature, kind)

    if pairwise:
        others = max(len(experts) - 1, 1)
        divergence = pairwise_kl(experts, temperature)
        of_experts = [
            torch.stack([kl for (k, _), kl in divergence.items() if k == i]).sum(dim=0) / others
            for i in range(len(experts))
        ]
    else:
        mean = mean_logits(experts).detach()
        of_experts = [_kl_terms(z, mean, temperature).sum(dim=1) for z in experts]
    row_loss = over_experts(of_experts, expert_reduction) * _factor(t2, temperature, kind)
    return reduce(row_loss, reduction)


def mean_logits(experts: Sequence[Tensor]) -> Tensor:
    """The mean of the experts' logits, in the dtype of the arithmetic: K x [N, C] -> [N, C]."""
    return torch.stack(tuple(experts)).mean(dim=0, dtype=_checks.compute_dtype(*experts))


def over_experts(terms: Sequence[Tensor], reduction: ExpertReduction) -> Tensor:
    """The sum or the mean of one term an expert."""
    stacked = torch.stack(tuple(terms))
    return stacked.sum(dim=0) if reduction == "sum" else stacked.mean(dim=0)


def pairwise_kl(
    experts: Sequence[Tensor],
    temperature: Temperature,
    *,
    detach_first: bool = False,
    detach_second: bool = False,
) -> dict[tuple[int, int], Tensor]:
    """KL(p_k || p_q) of each row, `[N]`, by (k, q), for all pairs of different experts.

    One expert is paired with itself: 0, or NaN for a row without a finite logit.
    """
    # Per pair, the gradient through an infinite p_k would need every pair's own support; a
    # constant for the whole row leaves sums over experts alone.
    infinite = _infinite_rows(experts, temperature)
    first = [z.detach() if detach_first else torch.where(infinite, z.detach(), z) for z in experts]
    second = [z.detach() if detach_second else z for z in experts]
    pairs = list(permutations(range(len(experts)), 2)) or [(0, 0)]
    return {(k, q): _kl_terms(second[q], first[k], temperature).sum(dim=1) for k, q in pairs}


@torch.no_grad()
def _infinite_rows(experts: Sequence[Tensor], temperature: Temperature) -> Tensor:
    """Rows with a class that has probability for one expert and none for another: [N, 1].

    Not the rows that are NaN, whose gradients are NaN through either distribution.
    """
    log_p = torch.stack([log_softmax_rows(z, temperature) for z in experts])  # [K, N, C]
    held, lacking = (log_p.exp() > 0).any(dim=0), (log_p == NEG_INF).any(dim=0)
    missing = log_p.isnan().any(dim=0)
    return (held & lacking).any(dim=1, keepdim=True) & ~missing.any(dim=1, keepdim=True)
