"""`ride_loss` and `diversity_loss`, fused: one pass over the logits of all experts."""

from __future__ import annotations

from torch import Tensor

from .. import _checks, _ops, reference
from .._checks import ExpertReduction, Experts, Reduction, Temperature
from ._constants import constant
from ._experts import data_of, experts_loss, use_fused
from .distillation import _temperature_arguments


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
    given = (
        data_of(expert_logits),
        target,
        margin,
        class_weight,
        temperature,
        diversity_factor,
        expert_reduction,
        reduction,
    )
    experts, kind = _checks.ride_loss(*given, values=False)
    if not use_fused("ride_loss", experts, temperature, margin):
        return reference.ride_loss(
            expert_logits,
            target,
            margin=margin,
            class_weight=class_weight,
            temperature=temperature,
            diversity_factor=diversity_factor,
            collaborative=collaborative,
            pairwise=pairwise,
            expert_reduction=expert_reduction,
            reduction=reduction,
        )
    first, count = experts[0], len(experts)
    share = 1.0 / count if expert_reduction == "mean" else 1.0
    divergence = _ops.PAIRWISE if pairwise else _ops.FROM_MEAN
    if diversity_factor == 0:
        divergence, temperature, kind = _ops.NO_DIVERGENCE, 1.0, "scalar"
    scalar, row, column, kl_factor, row_factor = _temperature_arguments(
        temperature, kind, True, first
    )
    others = max(count - 1, 1) if pairwise else 1
    try:
        return experts_loss(
            "ride_loss",
            expert_logits,
            experts,
            target.contiguous(),
            None if margin is None else constant(margin, first),
            None if class_weight is None else constant(class_weight, first),
            _ops.OF_MEAN if collaborative else _ops.OF_EACH,
            # The one cross-entropy of the mean counts for each expert.
            share * count if collaborative else share,
            divergence,
            scalar,
            row,
            column,
            diversity_factor * kl_factor * share / others,
            row_factor,
            None,
            False,
            True,
            True,
            _ops.REDUCTION_CODE[reduction],
        )
    except RuntimeError:
        _checks.ride_loss(*given)
        raise


def diversity_loss(
    expert_logits: Experts,
    temperature: Temperature = 1.0,
    *,
    pairwise: bool = False,
    t2: bool | float = True,
    expert_reduction: ExpertReduction = "sum",
    reduction: Reduction = "mean",
) -> Tensor:
    experts, kind = _checks.diversity_loss(
        data_of(expert_logits), temperature, t2, expert_reduction, reduction
    )
    if not use_fused("diversity_loss", experts, temperature):
        return reference.diversity_loss(
            expert_logits,
            temperature,
            pairwise=pairwise,
            t2=t2,
            expert_reduction=expert_reduction,
            reduction=reduction,
        )
    count = len(experts)
    scalar, row, column, kl_factor, row_factor = _temperature_arguments(
        temperature, kind, t2, experts[0]
    )
    share = 1.0 / count if expert_reduction == "mean" else 1.0
    others = max(count - 1, 1) if pairwise else 1
    return experts_loss(
        "diversity_loss",
        expert_logits,
        experts,
        None,
        None,
        None,
        _ops.NO_CROSS_ENTROPY,
        0.0,
        _ops.PAIRWISE if pairwise else _ops.FROM_MEAN,
        scalar,
        row,
        column,
        kl_factor * share / others,
        row_factor,
        None,
        False,
        True,
        True,
        _ops.REDUCTION_CODE[reduction],
    )


ride_loss.__doc__ = reference.ride_loss.__doc__
diversity_loss.__doc__ = reference.diversity_loss.__doc__
