"""`collaborative_kd_loss` and `knowledge_balance_weight`, as their definitions are called."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from .._checks import Direction, Experts, Reduction, Temperature


def collaborative_kd_loss(
    expert_logits: Experts,
    temperature: Temperature = 1.0,
    *,
    sample_weight: Tensor | None = None,
    direction: Direction = "as_printed",
    detach_teacher: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    return reference.collaborative_kd_loss(
        expert_logits,
        temperature,
        sample_weight=sample_weight,
        direction=direction,
        detach_teacher=detach_teacher,
        reduction=reduction,
    )


def knowledge_balance_weight(
    ref_logits: Tensor, cls_logits: Tensor, target: Tensor, *, eps: float = 1e-6
) -> Tensor:
    return reference.knowledge_balance_weight(
        ref_logits,
        cls_logits,
        target,
        eps=eps,
    )


collaborative_kd_loss.__doc__ = reference.collaborative_kd_loss.__doc__
knowledge_balance_weight.__doc__ = reference.knowledge_balance_weight.__doc__
