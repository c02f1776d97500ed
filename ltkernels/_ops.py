"""The native ops: loads `ltkernels._C` and says what each op returns for tensors without data."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

_OLDEST_TORCH = (2, 10)

_found = tuple(int(part) for part in torch.__version__.split(".")[:2])
if _found < _OLDEST_TORCH:
    raise ImportError(
        f"ltkernels needs torch {_OLDEST_TORCH[0]}.{_OLDEST_TORCH[1]} or newer, "
        f"found {torch.__version__}: pip install 'torch>={_OLDEST_TORCH[0]}.{_OLDEST_TORCH[1]}'"
    )
try:
    from . import _C
except ImportError as error:
    _root = Path(__file__).resolve().parents[1]
    if (_root / "CMakeLists.txt").exists() and not list(Path(__file__).parent.glob("_C.*.so")):
        raise ImportError(
            f"this is the source folder {_root}, where nothing is built: start Python in another "
            "folder to import the installed ltkernels (for the trainer, use the ltkernels-train "
            "command), or build in place with: pip install -e ."
        ) from error
    raise ImportError(
        f"ltkernels' native module cannot be loaded beside torch {torch.__version__} ({error}); "
        "build it for this Python and torch with: pip install --force-reinstall --no-deps ."
    ) from error

# Overloads are looked up once: an attribute access of torch.ops costs as much as a small kernel.
distillation = torch.ops.ltkernels.distillation.default
adjusted_cross_entropy = torch.ops.ltkernels.adjusted_cross_entropy.default
scale_gradient = torch.ops.ltkernels.scale_gradient.default

REDUCTION_CODE = {"none": 0, "mean": 1, "sum": 2}

built_for_cuda = bool(_C.cuda_architectures)


def _loss(logits: Tensor, reduction: int) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape[:1] if reduction == 0 else (), dtype=dtype)


def _gradient(logits: Tensor, wanted: bool) -> Tensor:
    if wanted:
        return torch.empty_like(logits, memory_format=torch.contiguous_format)
    return logits.new_empty(0, dtype=torch.float32)


def _scale(logits: Tensor, wanted: bool) -> Tensor:
    dtype = torch.float64 if wanted and logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape[0] if wanted else 0, dtype=dtype)


@torch.library.register_fake("ltkernels::distillation")  # type: ignore[untyped-decorator]
def _(
    student: Tensor,
    teacher: Tensor,
    classes: Tensor | None,
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
        _loss(student, reduction),
        _gradient(student, student_gradient),
        _gradient(teacher, teacher_gradient),
        _scale(student, scaled),
    )


@torch.library.register_fake("ltkernels::adjusted_cross_entropy")  # type: ignore[untyped-decorator]
def _(
    logits: Tensor,
    target: Tensor,
    scale: float,
    margin: Tensor | None,
    bias: Tensor | None,
    class_weight: Tensor | None,
    label_smoothing: float,
    focal_gamma: float,
    ignore_index: int,
    reduction: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    divided_late = logits.device.type == "cuda" and reduction == REDUCTION_CODE["mean"]
    scaled = gradient and (logits.dtype == torch.float16 or divided_late)
    return _loss(logits, reduction), _gradient(logits, gradient), _scale(logits, scaled)


@torch.library.register_fake("ltkernels::scale_gradient")  # type: ignore[untyped-decorator]
def _(gradient: Tensor, upstream: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(gradient)
