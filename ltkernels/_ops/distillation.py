"""The native op `distillation`, and what it returns for tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import empty_gradient, empty_loss, empty_scale

distillation = torch.ops.ltkernels.distillation.default


@torch.library.register_fake("ltkernels::distillation")  # type: ignore[untyped-decorator]
def _(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    row_temperature: Tensor | None,
    column_temperature: Tensor | None,
    class_weight: Tensor | None,
    kl_factor: float,
    row_factor: Tensor | None,
    target: Tensor | None,
    target_b: Tensor | None,
    lam: float,
    row_lam: Tensor | None,
    soft_target: Tensor | None,
    reduction: int,
    student_gradient: bool,
    teacher_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scaled = student.dtype == torch.float16 and (student_gradient or teacher_gradient)
    return (
        empty_loss(student, reduction),
        empty_gradient(student, student_gradient),
        empty_gradient(teacher, teacher_gradient),
        empty_scale(student, scaled),
    )
