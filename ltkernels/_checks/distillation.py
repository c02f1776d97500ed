"""Arguments of `kd_loss` and `bkd_loss`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .arguments import (
    TemperatureKind,
    can_read_values,
    class_subset,
    class_target,
    distinct_classes,
    logits,
    number,
    reduction,
    same_device,
    temperature,
    tensor,
    vector,
    wrong_shape,
)


def kd_loss(
    student: object,
    teacher: object,
    temperature_: object,
    classes: object,
    subset_weight: object,
    sample_weight: object,
    t2: object,
    reduction_: object,
) -> tuple[TemperatureKind, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Check the arguments of `kd_loss`, but for the values of `classes` (`kd_classes`).

    Returns the kind of its temperature, the teachers and the classes of the subsets (none for a
    teacher of all classes).
    """
    op = "kd_loss"
    s = logits(op, "student", student)
    rows, columns = s.shape
    teachers: tuple[Tensor, ...]
    subsets: tuple[Tensor, ...] = ()
    if classes is None:
        t = logits(op, "teacher", teacher, like=s)
        if t.shape != s.shape:
            raise wrong_shape(op, "teacher", "[N, C]", [rows, columns], t)
        if subset_weight is not None:
            raise ValueError(f"`{op}`: expected `classes` where `subset_weight` is given")
        teachers = (t,)
    else:
        teachers, subsets = _subsets(op, teacher, classes, s)
        _subset_weight(op, subset_weight, len(subsets), s)
    if sample_weight is not None:
        vector(op, "sample_weight", sample_weight, "N", rows, s)
    if not isinstance(t2, (bool, int, float)):
        raise TypeError(f"`{op}`: expected `t2` to be a bool or a number, got {type(t2).__name__}")
    reduction(op, reduction_)
    return temperature(op, temperature_, rows, columns, s), teachers, subsets


def kd_classes(classes: Tensor | Sequence[Tensor], columns: int) -> None:
    """Check the values of the `classes` of `kd_loss`."""
    if isinstance(classes, Tensor):
        distinct_classes("kd_loss", "classes", classes, columns)
        return
    for i, subset in enumerate(classes):
        distinct_classes("kd_loss", f"classes[{i}]", subset, columns)


def _subsets(
    op: str, teacher: object, classes: object, student: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Teachers `[N, S_l]` and classes `[S_l]` of L >= 1 subsets; a pair of tensors is one."""
    rows = student.shape[0]
    if isinstance(classes, Tensor) and not isinstance(teacher, Sequence):
        pairs = [("teacher", teacher, "classes", classes)]
    else:
        for name, value in (("teacher", teacher), ("classes", classes)):
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise TypeError(
                    f"`{op}`: expected `teacher` and `classes` to be two tensors or two sequences "
                    f"of L tensors, got {type(value).__name__} for `{name}`"
                )
        assert isinstance(teacher, Sequence)
        assert isinstance(classes, Sequence)
        if len(teacher) != len(classes) or len(classes) == 0:
            raise ValueError(
                f"`{op}`: expected `teacher` and `classes` of L >= 1 subsets, "
                f"got {len(teacher)} and {len(classes)}"
            )
        pairs = [
            (f"teacher[{i}]", t, f"classes[{i}]", c)
            for i, (t, c) in enumerate(zip(teacher, classes, strict=True))
        ]
    teachers, subsets = [], []
    for teacher_name, t, classes_name, c in pairs:
        teachers.append(logits(op, teacher_name, t, like=student))
        subsets.append(class_subset(op, classes_name, c, student))
        size = subsets[-1].shape[0]
        if teachers[-1].shape[0] != rows or teachers[-1].shape[1] != size:
            raise wrong_shape(op, teacher_name, "[N, S]", [rows, size], teachers[-1])
    return tuple(teachers), tuple(subsets)


def _subset_weight(op: str, value: object, subsets: int, like: Tensor) -> None:
    """L numbers, or a floating tensor `[L]`."""
    if value is None:
        return
    if isinstance(value, Tensor):
        vector(op, "subset_weight", value, "L", subsets, like)
        return
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(
            f"`{op}`: expected `subset_weight` to be L numbers or a tensor [L], "
            f"got {type(value).__name__}"
        )
    if len(value) != subsets:
        raise ValueError(
            f"`{op}`: expected `subset_weight` of L = {subsets} subsets, got {len(value)}"
        )
    for i, x in enumerate(value):
        number(op, f"subset_weight[{i}]", x)


def bkd_loss(
    student: object,
    teacher: object,
    target: object,
    class_weight: object,
    temperature_: object,
    alpha: object,
    target_b: object,
    lam: object,
    reduction_: object,
    *,
    values: bool = True,
) -> TemperatureKind:
    """Check the arguments of `bkd_loss`; returns the kind of its temperature."""
    op = "bkd_loss"
    s = logits(op, "student", student)
    rows, columns = s.shape
    t = logits(op, "teacher", teacher, like=s)
    if t.shape != s.shape:
        raise wrong_shape(op, "teacher", "[N, C]", [rows, columns], t)
    y = tensor(op, "target", target)
    if y.is_floating_point():
        if y.shape != s.shape:
            raise wrong_shape(op, "target", "probabilities [N, C]", [rows, columns], y)
        same_device(op, "target", y, s)
        if target_b is not None:
            raise ValueError(f"`{op}`: expected `target` to be int64 [N] where `target_b` is given")
    else:
        class_target(op, "target", y, s, values=values)
    if (target_b is None) != (lam is None):
        given, missing = ("lam", "target_b") if target_b is None else ("target_b", "lam")
        raise ValueError(f"`{op}`: expected `{missing}` where `{given}` is given")
    if target_b is not None:
        class_target(op, "target_b", target_b, s, values=values)
        _share(op, lam, rows, s)
    if class_weight is not None:
        vector(op, "class_weight", class_weight, "C", columns, s, non_negative=True, values=values)
    number(op, "alpha", alpha)
    reduction(op, reduction_)
    return temperature(op, temperature_, rows, columns, s)


def _share(op: str, lam: object, rows: int, like: Tensor) -> None:
    """Mixup's lam: a number, a 0-dim tensor or `[N]`, in 0..1."""
    if not isinstance(lam, Tensor):
        if not 0 <= number(op, "lam", lam) <= 1:
            raise ValueError(f"`{op}`: expected `lam` in 0..1, got {lam}")
        return
    x = vector(op, "lam", lam.expand(rows) if lam.dim() == 0 else lam, "N", rows, like)
    if can_read_values(x) and not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(f"`{op}`: expected `lam` in 0..1, got {lam.tolist()}")
