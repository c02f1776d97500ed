"""What the losses of several experts share: one kernel, one gradient for all of them.

The gradient of K experts is one tensor `[K, N, C]`. Logits that come as one tensor get it as it is,
a sequence of K tensors gets its views; neither is stacked or copied on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .. import _backend, _ops
from .._checks import Experts
from ._gradient import scaled


def data_of(expert_logits: Experts) -> Experts:
    """The logits as checks and kernels look at them: views of one tensor need no graph."""
    return expert_logits.detach() if isinstance(expert_logits, Tensor) else expert_logits


def use_fused(op: str, experts: Sequence[Tensor], *constants: object) -> bool:
    """Whether a call of `op` takes the fused kernel, see `_backend.use_fused`."""
    too_many = len(experts) > _ops.MOST_EXPERTS
    reason = f"the fused kernel takes up to {_ops.MOST_EXPERTS} experts" if too_many else None
    return _backend.use_fused(op, experts[0], *constants, unless=reason)


def experts_loss(
    op: str, expert_logits: Experts, experts: Sequence[Tensor], *rest: Tensor | float | int | None
) -> Tensor:
    """The loss of `experts`, the single matrices of `expert_logits`.

    Args:
        rest: what the native op takes after the logits, up to `reduction`.
    """
    leaves = (expert_logits,) if isinstance(expert_logits, Tensor) else experts
    if torch.is_grad_enabled() and any(z.requires_grad for z in leaves):
        loss = _Experts.apply(op, rest, *leaves)  # type: ignore[no-untyped-call]
    else:
        loss = _ops.experts(experts, *rest, False)[0]
    assert isinstance(loss, Tensor)
    return loss


class _Experts(torch.autograd.Function):
    """The loss, with the gradient of all experts computed on the way."""

    @staticmethod
    def forward(ctx: FunctionCtx, op: str, rest: tuple[Any, ...], *leaves: Tensor) -> Tensor:
        # The constants come as one tuple: autograd looks at every argument of its own.
        stacked = leaves[0].dim() == 3
        experts = leaves[0].unbind() if stacked else leaves
        loss, grad, scale = _ops.experts(experts, *rest, True)
        ctx.op, ctx.stacked = op, stacked  # type: ignore[attr-defined]
        ctx.save_for_backward(grad, scale, loss)
        assert isinstance(loss, Tensor)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad, scale, loss = ctx.saved_tensors
        above = upstream[0]
        if above.dim() == 1:
            above = above.expand(grad.shape[:2]).reshape(-1)
        rows = grad.flatten(0, 1)
        result = scaled(ctx.op, loss, rows, above, scale.flatten())
        unchanged = result is rows
        result = grad if unchanged else result.view(grad.shape)
        if ctx.stacked:
            return None, None, result
        views = result.unbind()
        if unchanged and not torch.compiler.is_compiling() and _is_graph_kept():
            # Another reference keeps autograd from making `.grad` of a leaf out of a view of the
            # saved gradient, which a second backward needs as it is.
            ctx.views = views
        return None, None, *views


def _is_graph_kept() -> bool:
    """Whether the backward pass that is running may be followed by another."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())
