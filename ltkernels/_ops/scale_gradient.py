"""The native op `scale_gradient`, and what it returns for tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library  # noqa: F401 (registers the op)

scale_gradient = torch.ops.ltkernels.scale_gradient.default


@torch.library.register_fake("ltkernels::scale_gradient")  # type: ignore[untyped-decorator]
def _(gradient: Tensor, upstream: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(gradient)
