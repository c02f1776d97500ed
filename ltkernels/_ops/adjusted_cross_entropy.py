"""The native op `adjusted_cross_entropy`, and what it returns for tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import REDUCTION_CODE, empty_gradient, empty_loss, empty_scale

adjusted_cross_entropy = torch.ops.ltkernels.adjusted_cross_entropy.default


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
    return (
        empty_loss(logits, reduction),
        empty_gradient(logits, gradient),
        empty_scale(logits, scaled),
    )
