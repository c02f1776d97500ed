"""The native op `subset_distillation`, and what it returns for tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import empty_gradient, empty_loss

subset_distillation = torch.ops.ltkernels.subset_distillation.default

MOST_SUBSETS = 16  # of one call


@torch.library.register_fake("ltkernels::subset_distillation")  # type: ignore[untyped-decorator]
def _(
    student: Tensor,
    teachers: list[Tensor],
    classes: list[Tensor],
    temperature: float,
    row_temperature: Tensor | None,
    column_temperature: Tensor | None,
    kl_factor: list[float],
    subset_factor: Tensor | None,
    row_factor: Tensor | None,
    reduction: int,
    student_gradient: bool,
    teacher_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = empty_loss(student, reduction)
    teacher_grad = student.new_empty(0, dtype=torch.float32)
    if teacher_gradient:
        teacher_grad = student.new_empty(sum(t.numel() for t in teachers))
    scaled = student.dtype == torch.float16 and (student_gradient or teacher_gradient)
    rows = (1 + len(teachers) * teacher_gradient, student.shape[0])
    scale = student.new_empty(rows if scaled else (0,), dtype=torch.float32)
    return loss, empty_gradient(student, student_gradient), teacher_grad, scale
