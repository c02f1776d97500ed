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

from .. import _checks, _ops


def scaled(op: str, loss: Tensor, gradient: Tensor, upstream: Tensor, scale: Tensor) -> Tensor:
    """gradient * upstream * scale, in a new tensor unless all factors are 1.

    Args:
        loss: the output of the forward pass.
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
        upstream.dim() == 0
        and scale.numel() == 0
        and _checks.can_read_values(upstream)  # reading another device's value would wait for it
        and upstream.item() == 1.0
    )
    result = gradient if one else _product(gradient, upstream, scale)
    # Grad mode in a backward pass is create_graph=True.
    return once_differentiable(op, result, loss, upstream) if torch.is_grad_enabled() else result


def once_differentiable(op: str, gradient: Tensor, loss: Tensor, upstream: Tensor) -> Tensor:
    """The gradient, which says on the way back that it has none of its own."""
    result = _OnceDifferentiable.apply(gradient, loss, upstream, op)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


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
    def forward(
        ctx: FunctionCtx, gradient: Tensor, loss: Tensor, upstream: Tensor, op: str
    ) -> Tensor:
        # `loss` and `upstream` tie the gradient to all it depends on: without them autograd.grad
        # would find no way from a gradient penalty to the logits, and take it as 0 in silence.
        ctx.op = op  # type: ignore[attr-defined]
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"`{ctx.op}`: the fused kernel cannot be differentiated twice; "
            "compute the loss under `with ltkernels.backend('reference'):`"
        )
