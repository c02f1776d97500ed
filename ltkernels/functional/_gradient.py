"""The backward pass that all fused losses share.

A fused loss computes its gradient in the forward pass, where the logits are at hand: each logit is
read once, each gradient written once. Backward multiplies the saved gradient by what comes from
above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .. import _ops


def scaled(op: str, gradient: Tensor, upstream: Tensor, scale: Tensor) -> Tensor:
    """gradient * upstream * scale, in a new tensor unless all factors are 1.

    Args:
        op: name for the error of a second derivative.
        gradient: as saved, `[N, C]`; never written to, so that backward can run twice.
        upstream: `[]` or `[N]`.
        scale: `[N]`, or empty for ones.
    """
    if torch.compiler.is_compiling():
        return _product(gradient, upstream, scale)
    if torch._C._are_functorch_transforms_active():  # is_grads_batched=True: a vmap of backwards
        return _product_by_definition(gradient, upstream, scale)
    one = (
        upstream.device.type == "cpu"  # reading a value of another device would wait for it
        and upstream.dim() == 0
        and scale.numel() == 0
        and upstream.item() == 1.0
    )
    result = gradient if one else _product(gradient, upstream, scale)
    # Grad mode in a backward pass is create_graph=True.
    return _OnceDifferentiable.mark(op, result) if torch.is_grad_enabled() else result


def _product(gradient: Tensor, upstream: Tensor, scale: Tensor) -> Tensor:
    result = _ops.scale_gradient(gradient, upstream, scale)
    assert isinstance(result, Tensor)
    return result


def _product_by_definition(gradient: Tensor, upstream: Tensor, scale: Tensor) -> Tensor:
    factor = upstream * scale if scale.numel() > 0 else upstream
    if factor.dim() == 1:
        factor = factor.unsqueeze(1)
    return (gradient.to(factor.dtype) * factor).to(gradient.dtype)


class _OnceDifferentiable(torch.autograd.Function):
    """The identity with an error for its backward pass: no fused gradient is differentiable."""

    @staticmethod
    def mark(op: str, gradient: Tensor) -> Tensor:
        # Even where nothing upstream requires a gradient: otherwise the gradient of a gradient
        # penalty would be taken as 0 in silence.
        result = _OnceDifferentiable.apply(gradient.detach().requires_grad_(), op)  # type: ignore[no-untyped-call]
        assert isinstance(result, Tensor)
        return result

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, op: str) -> Tensor:
        ctx.op = op  # type: ignore[attr-defined]
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"`{ctx.op}`: the fused kernel cannot be differentiated twice; "
            "compute the loss under `with ltkernels.backend('reference'):`"
        )
