"""`kd_loss` and `bkd_loss`, fused: one kernel for both, one pass over student and teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .. import _backend, _checks, _ops, reference
from .._checks import Reduction, Temperature, TemperatureKind
from ._constants import constant
from ._gradient import scaled


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature = 1.0,
    *,
    classes: Tensor | None = None,
    sample_weight: Tensor | None = None,
    t2: bool | float = True,
    detach_teacher: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    kind = _checks.kd_loss(student, teacher, temperature, classes, sample_weight, t2, reduction)
    if not _backend.use_fused("kd_loss", student, temperature, sample_weight):
        return reference.kd_loss(
            student,
            teacher,
            temperature,
            classes=classes,
            sample_weight=sample_weight,
            t2=t2,
            detach_teacher=detach_teacher,
            reduction=reduction,
        )
    student, teacher = _same_dtype(student, teacher)
    scalar, row, column, kl_factor, row_factor = _temperature_arguments(
        temperature, kind, t2, classes, student
    )
    if sample_weight is not None:
        weight = constant(sample_weight, student)
        row_factor = weight if row_factor is None else weight * row_factor
    return _distillation(
        "kd_loss",
        student,
        teacher.detach() if detach_teacher and teacher.requires_grad else teacher,
        classes.contiguous() if classes is not None else None,
        scalar,
        row,
        column,
        None,
        kl_factor,
        row_factor,
        None,
        None,
        1.0,
        None,
        None,
        _ops.REDUCTION_CODE[reduction],
    )


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
    given = (
        student,
        teacher,
        target,
        class_weight,
        temperature,
        alpha,
        target_b,
        lam,
        reduction,
    )
    kind = _checks.bkd_loss(*given, values=False)
    if not _backend.use_fused("bkd_loss", student, temperature):
        return reference.bkd_loss(
            student,
            teacher,
            target,
            class_weight,
            temperature,
            alpha,
            target_b=target_b,
            lam=lam,
            reduction=reduction,
        )
    student, teacher = _same_dtype(student, teacher)
    if alpha == 0:  # the teacher is not looked at: the divergence from the student itself is 0
        _checks.bkd_loss(*given)
        teacher, class_weight = student, None
    scalar, row, column, kl_factor, row_factor = _temperature_arguments(
        temperature, kind, True, None, student
    )
    soft = target.is_floating_point()
    row_lam = constant(lam, student) if isinstance(lam, Tensor) and lam.dim() > 0 else None
    if isinstance(lam, Tensor) and lam.dim() == 0:
        row_lam = constant(lam, student).expand(student.shape[0]).contiguous()
    try:
        return _distillation(
            "bkd_loss",
            student,
            teacher.detach() if teacher.requires_grad else teacher,
            None,
            scalar,
            row,
            column,
            None if class_weight is None else constant(class_weight, student),
            kl_factor * alpha,
            row_factor,
            None if soft else target.contiguous(),
            None if target_b is None else target_b.contiguous(),
            float(lam) if isinstance(lam, (int, float)) else 1.0,
            row_lam,
            constant(target, student) if soft else None,
            _ops.REDUCTION_CODE[reduction],
        )
    except RuntimeError:
        _checks.bkd_loss(*given)
        raise


kd_loss.__doc__ = reference.kd_loss.__doc__
bkd_loss.__doc__ = reference.bkd_loss.__doc__


def _same_dtype(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The kernels take one dtype: the wider of the two, which loses nothing."""
    if student.dtype == teacher.dtype:
        return student, teacher
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(dtype), teacher.to(dtype)


def _temperature_arguments(
    temperature: Temperature,
    kind: TemperatureKind,
    t2: bool | float,
    classes: Tensor | None,
    student: Tensor,
) -> tuple[float, Tensor | None, Tensor | None, float, Tensor | None]:
    """(temperature, row_temperature, column_temperature, kl_factor, row_factor) of the op."""
    fixed = 1.0 if isinstance(t2, bool) else t2
    if not isinstance(temperature, Tensor):
        return temperature, None, None, temperature**2 if t2 is True else fixed, None
    value = constant(temperature, student)
    if kind == "class":
        column = value if classes is None else value.index_select(0, classes)
        factor = column.mean().square().reshape(1) if t2 is True else None
        return 1.0, None, column, fixed, factor
    # One value for all is one a row: nothing is read back from the device.
    row = value.reshape(-1).expand(student.shape[0]).contiguous()
    factor = row.square() if t2 is True else None
    return 1.0, row, None, fixed, factor


def _distillation(
    op: str, student: Tensor, teacher: Tensor, *rest: Tensor | float | int | None
) -> Tensor:
    gradients = torch.is_grad_enabled()
    of_student = gradients and student.requires_grad
    of_teacher = gradients and teacher.requires_grad
    if of_student or of_teacher:
        loss = _Distillation.apply(op, student, teacher, (*rest, of_student, of_teacher))  # type: ignore[no-untyped-call]
    else:
        loss = _ops.distillation(student, teacher, *rest, False, False)[0]
    assert isinstance(loss, Tensor)
    return loss


class _Distillation(torch.autograd.Function):
    """The loss, with both gradients computed on the way."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, op: str, student: Tensor, teacher: Tensor, rest: tuple[Any, ...]
    ) -> Tensor:
        # The constants come as one tuple: autograd looks at every argument of its own.
        *constants, of_student, of_teacher = rest
        call = (student, teacher, *constants)
        if of_student and of_teacher and student.dtype == torch.float16:
            # A row's float16 gradients share a scale, and the teacher's can be larger than the
            # student's by as much as the divergence: one call each keeps the digits of both.
            loss, student_grad, _, *scales = _ops.distillation(*call, True, False)
            _, _, teacher_grad, teacher_scale = _ops.distillation(*call, False, True)
            scales.append(teacher_scale)
        else:
            loss, student_grad, teacher_grad, *scales = _ops.distillation(
                *call, of_student, of_teacher
            )
        ctx.op = op  # type: ignore[attr-defined]
        ctx.wanted = of_student, of_teacher  # type: ignore[attr-defined]
        ctx.save_for_backward(student_grad, teacher_grad, loss, *scales)
        assert isinstance(loss, Tensor)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student_grad, teacher_grad, loss, *scales = ctx.saved_tensors
        of_student, of_teacher = ctx.wanted
        return (
            None,
            scaled(ctx.op, loss, student_grad, upstream[0], scales[0]) if of_student else None,
            scaled(ctx.op, loss, teacher_grad, upstream[0], scales[-1]) if of_teacher else None,
            None,
        )
