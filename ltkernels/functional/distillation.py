"""`kd_loss` and `bkd_loss`, fused: one kernel for both, one pass over student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
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
    kind, teachers, subsets = _checks.kd_loss(
        student, teacher, temperature, classes, subset_weight, sample_weight, t2, reduction
    )
    if (
        not _backend.use_fused("kd_loss", student, temperature, sample_weight)
        or len(teachers) > _ops.MOST_SUBSETS
    ):
        return reference.kd_loss(
            student,
            teacher,
            temperature,
            classes=classes,
            subset_weight=subset_weight,
            sample_weight=sample_weight,
            t2=t2,
            detach_teacher=detach_teacher,
            reduction=reduction,
        )
    dtype = student.dtype
    if any(t.dtype != dtype for t in teachers):
        dtype = _widest(student, *teachers)
        student, teachers = student.to(dtype), tuple(t.to(dtype) for t in teachers)
    if detach_teacher:
        teachers = tuple(t.detach() if t.requires_grad else t for t in teachers)
    scalar, row, column, kl_factor, factor = _temperature_arguments(temperature, kind, t2, student)
    weight = None if sample_weight is None else constant(sample_weight, student)
    reduction_code = _ops.REDUCTION_CODE[reduction]
    if subsets:
        # A factor a class column is one a subset.
        by_subset = None
        if factor is not None and kind == "class":
            assert column is not None
            factor = None
            by_subset = torch.stack([column.index_select(0, c).mean().square() for c in subsets])
        numbers = [kl_factor] * len(subsets)
        if isinstance(subset_weight, Tensor):
            given = constant(subset_weight, student)
            by_subset = given if by_subset is None else given * by_subset
        elif subset_weight is not None:
            numbers = [kl_factor * w for w in subset_weight]
        if weight is not None:
            factor = weight if factor is None else weight * factor
        rest = (scalar, row, column, numbers, by_subset, factor, reduction_code)
        if torch.compiler.is_compiling():  # the values of `classes` cannot be told
            return _subset_distillation(student, teachers, subsets, rest)
        try:
            return _subset_distillation(student, teachers, subsets, rest)
        except RuntimeError:
            # The kernel looks at the classes anyhow. What is wrong with them is said here, where
            # it costs the good calls nothing.
            assert classes is not None
            _checks.kd_classes(classes, student.shape[1])
            raise
    if weight is not None:
        factor = weight if factor is None else weight * factor
    return _distillation(
        "kd_loss",
        student,
        teachers[0],
        scalar,
        row,
        column,
        None,
        kl_factor,
        factor,
        None,
        None,
        1.0,
        None,
        None,
        reduction_code,
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
    if student.dtype != teacher.dtype:
        dtype = _widest(student, teacher)
        student, teacher = student.to(dtype), teacher.to(dtype)
    if alpha == 0:  # the teacher is not looked at: the divergence from the student itself is 0
        _checks.bkd_loss(*given)
        teacher, class_weight = student, None
    scalar, row, column, kl_factor, row_factor = _temperature_arguments(
        temperature, kind, True, student
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


def _widest(*logits: Tensor) -> torch.dtype:
    """The kernels take one dtype: the widest, which loses nothing."""
    return reduce(torch.promote_types, (x.dtype for x in logits))


def _temperature_arguments(
    temperature: Temperature,
    kind: TemperatureKind,
    t2: bool | float,
    student: Tensor,
) -> tuple[float, Tensor | None, Tensor | None, float, Tensor | None]:
    """(temperature, row_temperature, column_temperature, kl_factor, row_factor) of the op."""
    fixed = 1.0 if isinstance(t2, bool) else t2
    if not isinstance(temperature, Tensor):
        return temperature, None, None, temperature**2 if t2 is True else fixed, None
    value = constant(temperature, student)
    if kind == "class":
        factor = value.mean().square().reshape(1) if t2 is True else None
        return 1.0, None, value, fixed, factor
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


def _subset_distillation(
    student: Tensor,
    teachers: tuple[Tensor, ...],
    classes: tuple[Tensor, ...],
    rest: tuple[Any, ...],
) -> Tensor:
    gradients = torch.is_grad_enabled()
    of_teachers = gradients and any(t.requires_grad for t in teachers)
    if of_teachers or (gradients and student.requires_grad):
        constants = (teachers, classes, *rest, student.requires_grad, of_teachers)
        # Only what has a gradient is an argument of its own: autograd looks at each.
        loss = _SubsetDistillation.apply(student, constants, *(teachers if of_teachers else ()))  # type: ignore[no-untyped-call]
    else:
        loss = _ops.subset_distillation(student, teachers, classes, *rest, False, False)[0]
    assert isinstance(loss, Tensor)
    return loss


class _SubsetDistillation(torch.autograd.Function):
    """The loss, with the gradients of the student and of all teachers computed on the way."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, student: Tensor, constants: tuple[Any, ...], *teachers: Tensor
    ) -> Tensor:
        given, *rest = constants
        if teachers:
            given = teachers
        loss, student_grad, teacher_grad, scale = _ops.subset_distillation(student, given, *rest)
        *_, of_student, of_teachers = rest
        of_each = teacher_grad.split([t.numel() for t in teachers]) if of_teachers else ()
        parts = [part.view(t.shape) for part, t in zip(of_each, teachers, strict=True)]
        ctx.of_student = of_student  # type: ignore[attr-defined]
        ctx.save_for_backward(student_grad, loss, scale, *parts)
        assert isinstance(loss, Tensor)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student_grad, loss, scale, *of_each = ctx.saved_tensors

        def times(gradient: Tensor, i: int) -> Tensor:
            own = scale[i] if scale.numel() > 0 else scale
            return scaled("kd_loss", loss, gradient, upstream[0], own)

        teachers = [times(gradient, 1 + i) for i, gradient in enumerate(of_each)]
        return (times(student_grad, 0) if ctx.of_student else None, None, *teachers)
