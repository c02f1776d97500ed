"""`topz_gate`, `routing_loss`, `routing_target` and `route_experts`, fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .. import _backend, _checks, _ops, reference
from ._gradient import once_differentiable


def topz_gate(
    logits: Tensor,
    feature: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    z: int = 30,
) -> Tensor:
    _checks.topz_gate(logits, feature, w1, b1, w2, b2, z)
    if not _backend.use_fused("topz_gate", logits):
        return reference.topz_gate(logits, feature, w1, b1, w2, b2, z)
    dtype = _checks.compute_dtype(logits, feature)
    if dtype == torch.float64:
        logits, feature = logits.to(dtype), feature.to(dtype)
    weights = [_arithmetic(x, dtype) for x in (w1, b1, w2, b2)]
    inputs = (logits, feature, *weights)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        gate = _TopzGate.apply(*inputs, z)  # type: ignore[no-untyped-call]
    else:
        gate = _ops.topz_gate(*inputs, z, False)[0]
    assert isinstance(gate, Tensor)
    return gate


topz_gate.__doc__ = reference.topz_gate.__doc__


def _arithmetic(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as the kernels read it; its gradient finds the way back."""
    return x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()


class _TopzGate(torch.autograd.Function):
    """The gate; the largest logits, where they were, and the hidden layer are kept for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        feature: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        z: int,
    ) -> Tensor:
        gate, *kept = _ops.topz_gate(logits, feature, w1, b1, w2, b2, z, True)
        # Of the logits backward needs the shape and the dtype alone.
        like = logits.new_empty(1).expand(logits.shape) if ctx.needs_input_grad[0] else kept[0]
        ctx.save_for_backward(feature, w1, w2, *kept, like, gate)
        assert isinstance(gate, Tensor)
        return gate

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        *saved, gate = ctx.saved_tensors
        upstream = upstreams[0]
        wants_logits, wants_feature, *wants_weights = ctx.needs_input_grad[:6]
        wanted = (wants_logits, wants_feature, any(wants_weights))
        compiling = torch.compiler.is_compiling()
        if not compiling and torch._C._are_functorch_transforms_active():  # is_grads_batched=True
            gradients = _gradients_by_definition(upstream, *saved)
        else:
            gradients = _ops.topz_gate_backward(upstream.contiguous(), *saved, *wanted)
        if not compiling and torch.is_grad_enabled():
            gradients = [
                once_differentiable("topz_gate", gradient, gate, upstream)
                for gradient in gradients
            ]
        kept = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(gradient if wants else None for gradient, wants in kept), None


def _gradients_by_definition(
    upstream: Tensor,
    feature: Tensor,
    w1: Tensor,
    w2: Tensor,
    top: Tensor,
    index: Tensor,
    units: Tensor,
    inverse_norm: Tensor,
    like: Tensor,
) -> tuple[Tensor, ...]:
    """As csrc/ops/topz_gate/topz_gate.h has them, for a batch of upstream gradients."""
    z = top.shape[1]
    unit = feature.to(w1.dtype) * inverse_norm.abs().unsqueeze(1)
    slope = torch.where(units <= 0, 0.0, upstream.unsqueeze(1) * w2[:, z:])
    of_unit = slope @ w1
    along = (unit * of_unit).sum(dim=1, keepdim=True) * (inverse_norm > 0).unsqueeze(1)
    to_top = torch.where(index < 0, 0.0, upstream.unsqueeze(1) * w2[:, :z])
    d_logits = torch.zeros(like.shape, dtype=w1.dtype, device=w1.device)
    return (
        d_logits.scatter_add(1, index.clamp(min=0).long(), to_top).to(like.dtype),
        ((of_unit - unit * along) * inverse_norm.abs().unsqueeze(1)).to(feature.dtype),
        slope.mT @ unit,
        slope.sum(dim=0),
        torch.cat([upstream @ top, upstream @ units]).unsqueeze(0),
        upstream.sum().unsqueeze(0),
    )
