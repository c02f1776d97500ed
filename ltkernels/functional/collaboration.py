"""`collaborative_kd_loss`, fused: all pairs of experts in one pass over their logits."""

from __future__ import annotations

from torch import Tensor

from .. import _checks, _ops, reference
from .._checks import Direction, Experts, Reduction, Temperature
from ._constants import constant
from ._experts import data_of, experts_loss, use_fused
from .distillation import _temperature_arguments


def collaborative_kd_loss(
    expert_logits: Experts,
    temperature: Temperature = 1.0,
    *,
    sample_weight: Tensor | None = None,
    direction: Direction = "as_printed",
    detach_teacher: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    experts, kind = _checks.collaborative_kd_loss(
        data_of(expert_logits), temperature, sample_weight, direction, reduction
    )
    if not use_fused("collaborative_kd_loss", experts, temperature, sample_weight):
        return reference.collaborative_kd_loss(
            expert_logits,
            temperature,
            sample_weight=sample_weight,
            direction=direction,
            detach_teacher=detach_teacher,
            reduction=reduction,
        )
    first, count = experts[0], len(experts)
    scalar, row, column, kl_factor, row_factor = _temperature_arguments(
        temperature, kind, True, first
    )
    student_first = direction == "as_printed"
    return experts_loss(
        "collaborative_kd_loss",
        expert_logits,
        experts,
        None,
        None,
        None,
        _ops.NO_CROSS_ENTROPY,
        0.0,
        _ops.PAIRWISE,
        scalar,
        row,
        column,
        kl_factor / max(count * (count - 1), 1),
        row_factor,
        None if sample_weight is None else constant(sample_weight, first),
        not student_first,
        student_first or not detach_teacher,
        not student_first or not detach_teacher,
        _ops.REDUCTION_CODE[reduction],
    )


collaborative_kd_loss.__doc__ = reference.collaborative_kd_loss.__doc__
