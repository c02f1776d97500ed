"""`adjusted_cross_entropy`, fused: one pass over the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .. import _backend, _checks, _ops, reference
from .._checks import Reduction
from ._constants import constant
from ._gradient import scaled


def adjusted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    scale: float = 1.0,
    margin: Tensor | None = None,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    given = (
        logits,
        target,
        scale,
        margin,
        bias,
        class_weight,
        label_smoothing,
        focal_gamma,
        ignore_index,
        reduction,
    )
    _checks.adjusted_cross_entropy(*given, values=False)
    if not _backend.use_fused("adjusted_cross_entropy", logits, margin, bias):
        return reference.adjusted_cross_entropy(
            logits,
            target,
            scale=scale,
            margin=margin,
            bias=bias,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            ignore_index=ignore_index,
            reduction=reduction,
        )
    gradient = torch.is_grad_enabled() and logits.requires_grad
    rest = (
        target.contiguous(),
        scale,
        None if margin is None else constant(margin, logits),
        None if bias is None else constant(bias, logits),
        None if class_weight is None else constant(class_weight, logits),
        label_smoothing,
        focal_gamma,
        ignore_index,
        _ops.REDUCTION_CODE[reduction],
        gradient,
    )
    try:
        if gradient:
            loss = _AdjustedCrossEntropy.apply(logits, rest)  # type: ignore[no-untyped-call]
        else:
            loss = _ops.adjusted_cross_entropy(logits, *rest)[0]
    except RuntimeError:
        _checks.adjusted_cross_entropy(*given)
        raise
    assert isinstance(loss, Tensor)
    return loss


adjusted_cross_entropy.__doc__ = reference.adjusted_cross_entropy.__doc__


class _AdjustedCrossEntropy(torch.autograd.Function):
    """The loss, with its gradient computed on the way."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, rest: tuple[Any, ...]) -> Tensor:
        # The constants come as one tuple: autograd looks at every argument of its own.
        loss, grad, scale = _ops.adjusted_cross_entropy(logits, *rest)
        ctx.save_for_backward(grad, scale, loss)
        assert isinstance(loss, Tensor)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad, scale, loss = ctx.saved_tensors
        return scaled("adjusted_cross_entropy", loss, grad, upstream[0], scale), None
