"""`topz_gate`, `routing_loss`, `routing_target` and `route_experts`, fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backend, _checks, _ops, reference
from .._checks import Experts, Reduction
from ._constants import constant
from ._experts import use_fused
from ._gradient import once_differentiable, scaled


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
            gradients = tuple(
                once_differentiable("topz_gate", gradient, gate, upstream) for gradient in gradients
            )
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


def routing_loss(
    gate: Tensor,
    needs_help: Tensor,
    pos_weight: float = 100.0,
    reduction: Reduction = "mean",
) -> Tensor:
    _checks.routing_loss(gate, needs_help, pos_weight, reduction)
    if not _backend.use_fused("routing_loss", gate):
        return reference.routing_loss(gate, needs_help, pos_weight, reduction)
    if needs_help.dtype != torch.bool:
        needs_help = constant(needs_help, gate)
    rest = (
        needs_help.reshape(-1).contiguous(),
        float(pos_weight),
        _ops.REDUCTION_CODE[reduction],
    )
    if torch.is_grad_enabled() and gate.requires_grad:
        loss = _RoutingLoss.apply(gate, rest)  # type: ignore[no-untyped-call]
    else:
        loss = _ops.routing_loss(gate.reshape(-1).contiguous(), *rest, False)[0]
    assert isinstance(loss, Tensor)
    return loss.view(gate.shape) if reduction == "none" else loss


routing_loss.__doc__ = reference.routing_loss.__doc__


class _RoutingLoss(torch.autograd.Function):
    """The loss, with its gradient computed on the way, in the dtype of the arithmetic."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, rest: tuple[Any, ...]) -> Tensor:
        loss, grad = _ops.routing_loss(gate.reshape(-1).contiguous(), *rest, True)
        ctx.save_for_backward(grad.unsqueeze(1), loss)
        ctx.shape, ctx.dtype = gate.shape, gate.dtype
        assert isinstance(loss, Tensor)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad, loss = ctx.saved_tensors
        result = scaled("routing_loss", loss, grad, upstream[0], grad.new_empty(0))
        return result.reshape(ctx.shape).to(ctx.dtype), None


def routing_target(expert_logits: Experts, target: Tensor) -> Tensor:
    experts = _checks.routing_target(expert_logits, target)
    if not use_fused("routing_target", experts):
        return reference.routing_target(expert_logits, target)
    needs_help = _ops.routing_target([x.detach() for x in experts], target.contiguous())
    assert isinstance(needs_help, Tensor)
    return needs_help


routing_target.__doc__ = reference.routing_target.__doc__


def route_experts(
    expert_logits: Experts,
    features: Experts,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    z: int = 30,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    experts, gates = _checks.route_experts(expert_logits, features, w1, b1, w2, b2, z, threshold)
    if not use_fused("route_experts", experts):
        return reference.route_experts(expert_logits, features, w1, b1, w2, b2, z, threshold)
    dtype = _checks.compute_dtype(*experts, *gates)

    def read(each: tuple[Tensor, ...]) -> list[Tensor]:
        return [x.detach().to(dtype) if dtype == torch.float64 else x.detach() for x in each]

    weights = (x.detach().to(dtype).contiguous() for x in (w1, b1, w2, b2))
    logits, used = _ops.route_experts(read(experts), read(gates), *weights, z, float(threshold))
    return logits, used


route_experts.__doc__ = reference.route_experts.__doc__
