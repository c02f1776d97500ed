"""Argument checks shared by `ltkernels.reference` and `ltkernels.functional`.

Shapes, dtypes and devices are checked always. Values (targets, temperatures, weights) are checked
where that is cheap and cannot synchronise: tensors in CPU memory, outside of tracing. Before a
fused kernel, which checks them itself, they are left to it (`values=False`); where it refuses, the
same checks with values name what was wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Temperature: TypeAlias = float | Tensor
TemperatureKind: TypeAlias = Literal["scalar", "class", "sample"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
ClassCounts: TypeAlias = Sequence[int] | Sequence[float] | Tensor

LOGIT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


# --- what a call may look at ---------------------------------------------------------------------


def can_read_values(tensor: Tensor) -> bool:
    """Whether the values of `tensor` may be looked at: real CPU memory, not being traced."""
    return (
        tensor.is_cpu
        and not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)  # not a fake or distributed tensor
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0  # no tracing mode
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # is_grads_batched
    )


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where one of the tensors is, else float32: the dtype of the arithmetic."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


# --- single arguments ----------------------------------------------------------------------------


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _fail_shape(op: str, name: str, symbols: str, sizes: Sequence[int], got: Tensor) -> ValueError:
    return ValueError(
        f"`{op}`: expected `{name}` to be {symbols} = {list(sizes)}, got {_shape(got)}"
    )


def tensor(op: str, name: str, value: object) -> Tensor:
    """`value`, which must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{op}`: expected `{name}` to be a Tensor, got {type(value).__name__}")
    return value


def logits(op: str, name: str, value: object, like: Tensor | None = None) -> Tensor:
    """Logits `[N, C]` with C >= 1, of a floating dtype, on the device of `like`."""
    x = tensor(op, name, value)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(
            f"`{op}`: expected `{name}` to be float16, bfloat16, float32 or float64, got {x.dtype}"
        )
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(
            f"`{op}`: expected `{name}` to be [N, C] with at least one class, got {_shape(x)}"
        )
    if like is not None:
        same_device(op, name, x, like)
    return x


def same_device(op: str, name: str, x: Tensor, like: Tensor) -> None:
    """`x` must lie where the logits lie."""
    if not (x.is_cpu and like.is_cpu) and x.device != like.device:  # is_cpu is quick
        raise ValueError(
            f"`{op}`: expected `{name}` to be on {like.device} like the logits, got {x.device}"
        )


def vector(
    op: str,
    name: str,
    value: object,
    symbol: str,
    size: int,
    like: Tensor,
    *,
    non_negative: bool = False,
    values: bool = True,
) -> Tensor:
    """A floating vector `[size]` on the device of `like`."""
    x = tensor(op, name, value)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(f"`{op}`: expected `{name}` to be a floating tensor, got {x.dtype}")
    if x.dim() != 1 or x.shape[0] != size:
        raise _fail_shape(op, name, f"[{symbol}]", [size], x)
    same_device(op, name, x, like)
    if non_negative and values and can_read_values(x) and not x.min().item() >= 0:  # NaN fails too
        raise ValueError(f"`{op}`: expected `{name}` >= 0, got {float(x.min())}")
    return x


def number(op: str, name: str, value: object) -> float:
    """A Python number (`bool` is none)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{op}`: expected `{name}` to be a number, got {type(value).__name__}")
    return value


def positive(op: str, name: str, value: object) -> float:
    """A finite number > 0."""
    x = number(op, name, value)
    if not 0 < x < math.inf:
        raise ValueError(f"`{op}`: expected `{name}` to be finite and > 0, got {x}")
    return x


def reduction(op: str, value: object) -> None:
    """One of "mean", "sum", "none"."""
    if value not in REDUCTIONS:
        raise ValueError(
            f"`{op}`: expected `reduction` to be 'mean', 'sum' or 'none', got {value!r}"
        )


def temperature(
    op: str, value: object, rows: int, columns: int, like: Tensor, *, columns_symbol: str = "C"
) -> TemperatureKind:
    """How a temperature applies: to everything, a class column `[C]` or a sample `[N, 1]`."""
    if not isinstance(value, Tensor):
        positive(op, "temperature", value)
        return "scalar"
    if value.dtype not in LOGIT_DTYPES:
        raise TypeError(f"`{op}`: expected `temperature` to be floating, got {value.dtype}")
    same_device(op, "temperature", value, like)
    kind: TemperatureKind
    if value.numel() == 1:
        kind = "scalar"
    elif value.dim() == 1 and value.shape[0] == columns:
        kind = "class"
    elif value.dim() == 2 and value.shape[0] == rows and value.shape[1] == 1:
        kind = "sample"
    else:
        raise ValueError(
            f"`{op}`: expected `temperature` to be a number, [{columns_symbol}] = [{columns}] or "
            f"[N, 1] = [{rows}, 1], got {_shape(value)}"
        )
    if value.numel() > 0 and can_read_values(value) and not value.min().item() > 0:
        raise ValueError(f"`{op}`: expected `temperature` > 0, got {float(value.min())}")
    return kind


def class_target(
    op: str,
    name: str,
    value: object,
    like: Tensor,
    *,
    ignore_index: int | None = None,
    values: bool = True,
) -> Tensor:
    """Class indices int64 `[N]` in 0..C-1 (or `ignore_index`) for the logits `like`."""
    x = tensor(op, name, value)
    rows, classes = like.shape
    if x.dtype != torch.int64:
        raise TypeError(f"`{op}`: expected `{name}` to be int64 class indices, got {x.dtype}")
    if x.dim() != 1 or x.shape[0] != rows:
        raise _fail_shape(op, name, "[N]", [rows], x)
    same_device(op, name, x, like)
    if values and can_read_values(x) and x.numel() > 0:
        low, high = x.min().item(), x.max().item()
        if ignore_index is not None and (low < 0 or high >= classes):
            kept = x[x != ignore_index]
            low, high = (kept.min().item(), kept.max().item()) if kept.numel() else (0, 0)
        if low < 0 or high >= classes:
            bad = low if low < 0 else high
            raise IndexError(f"`{op}`: expected `{name}` in 0..{classes - 1}, got {bad}")
    return x


def class_subset(op: str, name: str, value: object, student: Tensor) -> Tensor:
    """Columns int64 `[S]` of the student; `distinct_classes` checks their values."""
    x = tensor(op, name, value)
    if x.dtype != torch.int64:
        raise TypeError(f"`{op}`: expected `{name}` to be int64, got {x.dtype}")
    if x.dim() != 1 or x.shape[0] == 0:
        raise ValueError(f"`{op}`: expected `{name}` to be [S] with S >= 1, got {_shape(x)}")
    same_device(op, name, x, student)
    return x


def distinct_classes(op: str, name: str, x: Tensor, columns: int) -> None:
    """The values of a class subset: distinct, in 0..columns-1."""
    if not can_read_values(x):
        return
    low, high = x.min().item(), x.max().item()
    if low < 0 or high >= columns:
        bad = low if low < 0 else high
        raise IndexError(f"`{op}`: expected `{name}` in 0..{columns - 1}, got {bad}")
    times = torch.bincount(x)
    if int(times.max()) > 1:
        raise ValueError(
            f"`{op}`: expected `{name}` to be distinct, got {int(times.argmax())} twice"
        )


def class_counts(op: str, value: object, name: str = "class_counts") -> Tensor:
    """Training images a class, as float64 `[C]` on the CPU; every count must be > 0."""
    try:
        counts = torch.as_tensor(value).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"`{op}`: expected `{name}` to be a sequence or tensor of numbers, "
            f"got {type(value).__name__}"
        ) from error
    if counts.dim() != 1 or counts.numel() == 0:
        raise ValueError(f"`{op}`: expected `{name}` to be [C] with C >= 1, got {_shape(counts)}")
    if not bool(((counts > 0) & (counts < math.inf)).all()):
        raise ValueError(f"`{op}`: expected `{name}` to be finite and > 0, got {counts.tolist()}")
    return counts


# --- whole calls ---------------------------------------------------------------------------------


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
            raise _fail_shape(op, "teacher", "[N, C]", [rows, columns], t)
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
            raise _fail_shape(op, teacher_name, "[N, S]", [rows, size], teachers[-1])
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
        raise _fail_shape(op, "teacher", "[N, C]", [rows, columns], t)
    y = tensor(op, "target", target)
    if y.is_floating_point():
        if y.shape != s.shape:
            raise _fail_shape(op, "target", "probabilities [N, C]", [rows, columns], y)
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


def adjusted_cross_entropy(
    logits_: object,
    target: object,
    scale: object,
    margin: object,
    bias: object,
    class_weight: object,
    label_smoothing: object,
    focal_gamma: object,
    ignore_index: object,
    reduction_: object,
    *,
    values: bool = True,
) -> None:
    """Check the arguments of `adjusted_cross_entropy`."""
    op = "adjusted_cross_entropy"
    x = logits(op, "logits", logits_)
    classes = x.shape[1]
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(
            f"`{op}`: expected `ignore_index` to be an int, got {type(ignore_index).__name__}"
        )
    class_target(op, "target", target, x, ignore_index=ignore_index, values=values)
    positive(op, "scale", scale)
    if margin is not None:
        vector(op, "margin", margin, "C", classes, x)
    if bias is not None:
        vector(op, "bias", bias, "C", classes, x)
    if class_weight is not None:
        vector(op, "class_weight", class_weight, "C", classes, x, non_negative=True, values=values)
    if not 0 <= number(op, "label_smoothing", label_smoothing) <= 1:
        raise ValueError(f"`{op}`: expected `label_smoothing` in 0..1, got {label_smoothing}")
    if not 0 <= number(op, "focal_gamma", focal_gamma) < math.inf:
        raise ValueError(f"`{op}`: expected `focal_gamma` to be finite, >= 0, got {focal_gamma}")
    reduction(op, reduction_)


# --- several experts -----------------------------------------------------------------------------

Experts: TypeAlias = Sequence[Tensor] | Tensor
ExpertReduction: TypeAlias = Literal["sum", "mean"]
Direction: TypeAlias = Literal["as_printed", "teacher_first"]


def expert_logits(
    op: str, name: str, value: object, symbols: tuple[str, str] = ("N", "C")
) -> tuple[Tensor, ...]:
    """The logits of K >= 1 experts, `[N, C]` each, of one shape, dtype and device.

    Taken from a sequence of K tensors, or as views of one tensor `[K, N, C]`; nothing is copied.
    """
    each = ", ".join(symbols)
    wanted = f"[K, {each}] or a sequence of K >= 1 tensors [{each}]"
    if isinstance(value, Tensor):
        if value.dim() != 3 or value.shape[0] == 0:
            raise ValueError(f"`{op}`: expected `{name}` to be {wanted}, got {_shape(value)}")
        experts = value.unbind()
        logits(op, f"{name}[0]", experts[0])
        return experts
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"`{op}`: expected `{name}` to be {wanted}, got {type(value).__name__}")
    if len(value) == 0:
        raise ValueError(f"`{op}`: expected `{name}` to be {wanted}, got none")
    first = logits(op, f"{name}[0]", value[0])
    for k in range(1, len(value)):
        x = logits(op, f"{name}[{k}]", value[k], like=first)
        if x.shape != first.shape:
            raise _fail_shape(op, f"{name}[{k}]", f"[{each}]", first.shape, x)
        if x.dtype != first.dtype:
            raise TypeError(
                f"`{op}`: expected `{name}[{k}]` to be {first.dtype} like `{name}[0]`, "
                f"got {x.dtype}"
            )
    return tuple(value)


def one_of(op: str, name: str, value: object, *choices: str) -> None:
    """One of the strings `choices`."""
    if value not in choices:
        wanted = " or ".join(map(repr, choices))
        raise ValueError(f"`{op}`: expected `{name}` to be {wanted}, got {value!r}")


def embedding(op: str, name: str, value: object, like: Tensor | None = None) -> Tensor:
    """Features `[N, D]` with D >= 1, of a floating dtype, on the device of `like`."""
    x = tensor(op, name, value)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(
            f"`{op}`: expected `{name}` to be float16, bfloat16, float32 or float64, got {x.dtype}"
        )
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(
            f"`{op}`: expected `{name}` to be [N, D] with at least one channel, got {_shape(x)}"
        )
    if like is not None:
        same_device(op, name, x, like)
    return x


def _weight_matrix(
    op: str, name: str, value: object, symbols: str, sizes: tuple[int, int], like: Tensor
) -> None:
    x = tensor(op, name, value)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(f"`{op}`: expected `{name}` to be a floating tensor, got {x.dtype}")
    if tuple(x.shape) != sizes:
        raise _fail_shape(op, name, symbols, sizes, x)
    same_device(op, name, x, like)


def ride_loss(
    expert_logits_: object,
    target: object,
    margin: object,
    class_weight: object,
    temperature_: object,
    diversity_factor: object,
    expert_reduction: object,
    reduction_: object,
    values: bool = True,
) -> tuple[tuple[Tensor, ...], TemperatureKind]:
    """Check the arguments of `ride_loss`; returns the experts and the kind of temperature."""
    op = "ride_loss"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    rows, classes = experts[0].shape
    first = experts[0]
    class_target(op, "target", target, first, values=values)
    if margin is not None:
        vector(op, "margin", margin, "C", classes, first)
    if class_weight is not None:
        vector(
            op, "class_weight", class_weight, "C", classes, first, non_negative=True, values=values
        )
    number(op, "diversity_factor", diversity_factor)
    one_of(op, "expert_reduction", expert_reduction, "sum", "mean")
    reduction(op, reduction_)
    return experts, temperature(op, temperature_, rows, classes, first)


def diversity_loss(
    expert_logits_: object,
    temperature_: object,
    t2: object,
    expert_reduction: object,
    reduction_: object,
) -> tuple[tuple[Tensor, ...], TemperatureKind]:
    """Check the arguments of `diversity_loss`; returns the experts and the kind of temperature."""
    op = "diversity_loss"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    rows, classes = experts[0].shape
    if not isinstance(t2, (bool, int, float)):
        raise TypeError(f"`{op}`: expected `t2` to be a bool or a number, got {type(t2).__name__}")
    one_of(op, "expert_reduction", expert_reduction, "sum", "mean")
    reduction(op, reduction_)
    return experts, temperature(op, temperature_, rows, classes, experts[0])


def collaborative_kd_loss(
    expert_logits_: object,
    temperature_: object,
    sample_weight: object,
    direction: object,
    reduction_: object,
) -> tuple[tuple[Tensor, ...], TemperatureKind]:
    """Check the arguments of `collaborative_kd_loss`; returns as `diversity_loss`."""
    op = "collaborative_kd_loss"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    rows, classes = experts[0].shape
    if sample_weight is not None:
        sizes = (len(experts), rows)
        _weight_matrix(op, "sample_weight", sample_weight, "[K, N]", sizes, experts[0])
    one_of(op, "direction", direction, "as_printed", "teacher_first")
    reduction(op, reduction_)
    return experts, temperature(op, temperature_, rows, classes, experts[0])


def knowledge_balance_weight(
    ref_logits: object, cls_logits: object, target: object, eps: object
) -> None:
    """Check the arguments of `knowledge_balance_weight`."""
    op = "knowledge_balance_weight"
    ref = logits(op, "ref_logits", ref_logits)
    cls = logits(op, "cls_logits", cls_logits, like=ref)
    if cls.shape != ref.shape:
        raise _fail_shape(op, "cls_logits", "[N, C]", ref.shape, cls)
    class_target(op, "target", target, ref)
    positive(op, "eps", eps)


def _top(op: str, z: object, classes: int) -> int:
    """How many of the largest logits a gate looks at: 1..C."""
    if isinstance(z, bool) or not isinstance(z, int):
        raise TypeError(f"`{op}`: expected `z` to be an int, got {type(z).__name__}")
    if not 1 <= z <= classes:
        raise ValueError(f"`{op}`: expected `z` in 1..C = 1..{classes}, got {z}")
    return z


def topz_gate(
    logits_: object,
    feature: object,
    w1: object,
    b1: object,
    w2: object,
    b2: object,
    z: object,
) -> None:
    """Check the arguments of `topz_gate`."""
    op = "topz_gate"
    x = logits(op, "logits", logits_)
    rows, classes = x.shape
    v = embedding(op, "feature", feature, like=x)
    if v.shape[0] != rows:
        raise _fail_shape(op, "feature", "[N, D]", [rows, v.shape[1]], v)
    z = _top(op, z, classes)
    first = tensor(op, "w1", w1)
    hidden = first.shape[0] if first.dim() == 2 else 1
    _weight_matrix(op, "w1", first, "[h, D]", (hidden, v.shape[1]), x)
    vector(op, "b1", b1, "h", hidden, x)
    _weight_matrix(op, "w2", w2, "[1, z + h]", (1, z + hidden), x)
    vector(op, "b2", b2, "1", 1, x)


def routing_loss(gate: object, needs_help: object, pos_weight: object, reduction_: object) -> None:
    """Check the arguments of `routing_loss`."""
    op = "routing_loss"
    x = tensor(op, "gate", gate)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(
            f"`{op}`: expected `gate` to be float16, bfloat16, float32 or float64, got {x.dtype}"
        )
    y = tensor(op, "needs_help", needs_help)
    if y.dtype != torch.bool and not y.is_floating_point():
        raise TypeError(f"`{op}`: expected `needs_help` to be bool or floating, got {y.dtype}")
    if y.shape != x.shape:
        raise ValueError(
            f"`{op}`: expected `needs_help` to have the shape of `gate`, {_shape(x)}, "
            f"got {_shape(y)}"
        )
    same_device(op, "needs_help", y, x)
    positive(op, "pos_weight", pos_weight)
    reduction(op, reduction_)


def routing_target(expert_logits_: object, target: object) -> tuple[Tensor, ...]:
    """Check the arguments of `routing_target`; returns the experts."""
    op = "routing_target"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    class_target(op, "target", target, experts[0])
    return experts


def route_experts(
    expert_logits_: object,
    features: object,
    w1: object,
    b1: object,
    w2: object,
    b2: object,
    z: object,
    threshold: object,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Check the arguments of `route_experts`; returns K logits and K - 1 features."""
    op = "route_experts"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    first = experts[0]
    rows, classes = first.shape
    routers = len(experts) - 1
    one_of_k = [routers, len(experts)]
    if not isinstance(features, (Tensor, Sequence)) or isinstance(features, str):
        raise TypeError(
            f"`{op}`: expected `features` to be tensors [N, D], got {type(features).__name__}"
        )
    if isinstance(features, Tensor) and features.dim() != 3:
        raise ValueError(f"`{op}`: expected `features` to be [K - 1, N, D], got {_shape(features)}")
    if len(features) not in one_of_k:
        raise ValueError(
            f"`{op}`: expected `features` of K - 1 = {routers} experts (or of all), "
            f"got {len(features)}"
        )
    gates = tuple(embedding(op, f"features[{i}]", features[i], like=first) for i in range(routers))
    for i, v in enumerate(gates):
        if v.shape[0] != rows or v.shape != gates[0].shape:
            raise _fail_shape(op, f"features[{i}]", "[N, D]", [rows, gates[0].shape[1]], v)
        if v.dtype != gates[0].dtype:
            raise TypeError(
                f"`{op}`: expected `features[{i}]` to be {gates[0].dtype} like `features[0]`, "
                f"got {v.dtype}"
            )
    z = _top(op, z, classes)
    first_weight = tensor(op, "w1", w1)
    hidden = first_weight.shape[1] if first_weight.dim() == 3 else 1
    width = gates[0].shape[1] if gates else first_weight.shape[-1] if first_weight.dim() else 1
    sizes: dict[str, tuple[object, dict[str, tuple[int, ...]]]] = {
        "w1": (w1, {"[K - 1, h, D]": (routers, hidden, width)}),
        "b1": (b1, {"[K - 1, h]": (routers, hidden)}),
        "w2": (w2, {"[1, z + h]": (1, z + hidden), "[K - 1, 1, z + h]": (routers, 1, z + hidden)}),
        "b2": (b2, {"[1]": (1,), "[K - 1, 1]": (routers, 1)}),
    }
    for name, (value, allowed) in sizes.items():
        x = tensor(op, name, value)
        if x.dtype not in LOGIT_DTYPES:
            raise TypeError(f"`{op}`: expected `{name}` to be a floating tensor, got {x.dtype}")
        if tuple(x.shape) not in allowed.values():
            wanted = " or ".join(f"{k} = {list(v)}" for k, v in allowed.items())
            raise ValueError(f"`{op}`: expected `{name}` to be {wanted}, got {_shape(x)}")
        same_device(op, name, x, first)
    shared = [tensor(op, "w2", w2).dim() == 2, tensor(op, "b2", b2).dim() == 1]
    if shared[0] != shared[1]:
        raise ValueError(
            f"`{op}`: expected `b2` to be shared where `w2` is, and one a router where `w2` is: "
            f"got {_shape(tensor(op, 'w2', w2))} and {_shape(tensor(op, 'b2', b2))}"
        )
    if not -math.inf <= number(op, "threshold", threshold) <= math.inf:
        raise ValueError(f"`{op}`: expected `threshold` to be a number, got {threshold}")
    return experts, gates


def info_nce(
    query: object, key: object, queue: object, temperature_: object, reduction_: object
) -> TemperatureKind:
    """Check the arguments of `info_nce`; returns the kind of its temperature."""
    op = "info_nce"
    q = embedding(op, "query", query)
    rows, width = q.shape
    k = embedding(op, "key", key, like=q)
    if k.shape != q.shape:
        raise _fail_shape(op, "key", "[N, D]", [rows, width], k)
    negatives = embedding(op, "queue", queue, like=q)
    if negatives.shape[1] != width:
        raise _fail_shape(op, "queue", "[Q, D]", [negatives.shape[0], width], negatives)
    reduction(op, reduction_)
    # One a column of similarities would have no meaning.
    kinds: tuple[list[int], ...] = ([], [1], [1, 1], [rows, 1])
    if isinstance(temperature_, Tensor) and list(temperature_.shape) not in kinds:
        raise ValueError(
            f"`{op}`: expected `temperature` to be a number or [N, 1] = [{rows}, 1], "
            f"got {_shape(temperature_)}"
        )
    return temperature(op, temperature_, rows, 1 + negatives.shape[0], q)
