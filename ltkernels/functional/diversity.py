"""`ride_loss` and `diversity_loss`, as their definitions are called."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from .._checks import ExpertReduction, Experts, Reduction, Temperature


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


def diversity_loss(
    expert_logits: Experts,
    temperature: Temperature = 1.0,
    *,
    pairwise: bool = False,
    t2: bool | float = True,
    expert_reduction: ExpertReduction = "sum",
    reduction: Reduction = "mean",
) -> Tensor:
    return reference.diversity_loss(
        expert_logits,
        temperature,
        pairwise=pairwise,
        t2=t2,
        expert_reduction=expert_reduction,
        reduction=reduction,
    )


ride_loss.__doc__ = reference.ride_loss.__doc__
diversity_loss.__doc__ = reference.diversity_loss.__doc__
