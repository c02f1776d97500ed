"""Loads `ltkernels._C`, which registers the ops, and what their fake kernels share."""

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
    from .. import _C
except ImportError as error:
    _root = Path(__file__).resolve().parents[2]
    if (_root / "CMakeLists.txt").exists() and not list(Path(__file__).parents[1].glob("_C.*.so")):
        raise ImportError(
            f"this is the source folder {_root}, where nothing is built: start Python in another "
            "folder to import the installed ltkernels (for the trainer, use the ltkernels-train "
            "command), or build in place with: pip install -e ."
        ) from error
    raise ImportError(
        f"ltkernels' native module cannot be loaded beside torch {torch.__version__} ({error}); "
        "build it for this Python and torch with: pip install --force-reinstall --no-deps ."
    ) from error

REDUCTION_CODE = {"none": 0, "mean": 1, "sum": 2}

built_for_cuda = bool(_C.cuda_architectures)


def empty_loss(logits: Tensor, reduction: int) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape[:1] if reduction == 0 else (), dtype=dtype)


def empty_gradient(logits: Tensor, wanted: bool) -> Tensor:
    if wanted:
        return torch.empty_like(logits, memory_format=torch.contiguous_format)
    return logits.new_empty(0, dtype=torch.float32)


def empty_scale(logits: Tensor, wanted: bool) -> Tensor:
    dtype = torch.float64 if wanted and logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape[0] if wanted else 0, dtype=dtype)
