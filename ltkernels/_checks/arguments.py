"""Single arguments: tensors of a shape, numbers in a range, one word of some."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Temperature: TypeAlias = float | Tensor
TemperatureKind: TypeAlias = Literal["scalar", "class", "sample"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
ExpertReduction: TypeAlias = Literal["sum", "mean"]
Direction: TypeAlias = Literal["as_printed", "teacher_first"]
ClassCounts: TypeAlias = Sequence[int] | Sequence[float] | Tensor
Experts: TypeAlias = Sequence[Tensor] | Tensor

LOGIT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


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


def shape_of(x: Tensor) -> str:
    return str(list(x.shape))


def wrong_shape(op: str, name: str, symbols: str, sizes: Sequence[int], got: Tensor) -> ValueError:
    return ValueError(
        f"`{op}`: expected `{name}` to be {symbols} = {list(sizes)}, got {shape_of(got)}"
    )


def tensor(op: str, name: str, value: object) -> Tensor:
    """`value`, which must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{op}`: expected `{name}` to be a Tensor, got {type(value).__name__}")
    return value


def logits(op: str, name: str, value: object, like: Tensor | None = None) -> Tensor:
    """Logits `[N, C]` with C >= 1, of a floating dtype, on the device of `like`."""
    return _matrix(op, name, value, like, "[N, C] with at least one class")


def embedding(op: str, name: str, value: object, like: Tensor | None = None) -> Tensor:
    """Features `[N, D]` with D >= 1, of a floating dtype, on the device of `like`."""
    return _matrix(op, name, value, like, "[N, D] with at least one channel")


def _matrix(op: str, name: str, value: object, like: Tensor | None, wanted: str) -> Tensor:
    x = tensor(op, name, value)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(
            f"`{op}`: expected `{name}` to be float16, bfloat16, float32 or float64, got {x.dtype}"
        )
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"`{op}`: expected `{name}` to be {wanted}, got {shape_of(x)}")
    if like is not None:
        same_device(op, name, x, like)
    return x


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
            raise ValueError(f"`{op}`: expected `{name}` to be {wanted}, got {shape_of(value)}")
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
            raise wrong_shape(op, f"{name}[{k}]", f"[{each}]", first.shape, x)
        if x.dtype != first.dtype:
            raise TypeError(
                f"`{op}`: expected `{name}[{k}]` to be {first.dtype} like `{name}[0]`, "
                f"got {x.dtype}"
            )
    return tuple(value)


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
        raise wrong_shape(op, name, f"[{symbol}]", [size], x)
    same_device(op, name, x, like)
    if non_negative and values and can_read_values(x) and not x.min().item() >= 0:  # NaN fails too
        raise ValueError(f"`{op}`: expected `{name}` >= 0, got {float(x.min())}")
    return x


def weight_matrix(
    op: str, name: str, value: object, symbols: str, sizes: tuple[int, int], like: Tensor
) -> None:
    x = tensor(op, name, value)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(f"`{op}`: expected `{name}` to be a floating tensor, got {x.dtype}")
    if tuple(x.shape) != sizes:
        raise wrong_shape(op, name, symbols, sizes, x)
    same_device(op, name, x, like)


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


def one_of(op: str, name: str, value: object, *choices: str) -> None:
    """One of the strings `choices`."""
    if value not in choices:
        wanted = " or ".join(map(repr, choices))
        raise ValueError(f"`{op}`: expected `{name}` to be {wanted}, got {value!r}")


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
            f"[N, 1] = [{rows}, 1], got {shape_of(value)}"
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
        raise wrong_shape(op, name, "[N]", [rows], x)
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
        raise ValueError(f"`{op}`: expected `{name}` to be [S] with S >= 1, got {shape_of(x)}")
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
        raise ValueError(f"`{op}`: expected `{name}` to be [C] with C >= 1, got {shape_of(counts)}")
    if not bool(((counts > 0) & (counts < math.inf)).all()):
        raise ValueError(f"`{op}`: expected `{name}` to be finite and > 0, got {counts.tolist()}")
    return counts
