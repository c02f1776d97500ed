"""`info_nce`, fused: one pass over the queue, and no matrix of similarities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .. import _backend, _checks, _ops, reference
from .._checks import Reduction, Temperature
from ._gradient import scaled


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: Temperature = 0.2,
    reduction: Reduction = "mean",
) -> Tensor:
    _checks.info_nce(query, key, queue, temperature, reduction)
    if not _backend.use_fused("info_nce", query, temperature):
        return reference.info_nce(query, key, queue, temperature, reduction)
    dtype = _checks.compute_dtype(query, key, queue)
    if dtype == torch.float64:
        query = query.to(dtype)  # the kernel's arithmetic is that of the query
    number, row = temperature, None
    if isinstance(temperature, Tensor):
        # One value for all is one a row: nothing is read back from the device.
        value = temperature.detach().to(dtype).reshape(-1)
        number, row = 1.0, value.expand(query.shape[0]).contiguous()
    gradient = torch.is_grad_enabled() and query.requires_grad
    rest = (
        key.detach(),
        queue.detach(),
        number,
        row,
        _ops.REDUCTION_CODE[reduction],
        gradient,
    )
    if gradient:
        loss = _InfoNCE.apply(query, rest)  # type: ignore[no-untyped-call]
    else:
        loss = _ops.info_nce(query, *rest)[0]
    assert isinstance(loss, Tensor)
    return loss


info_nce.__doc__ = reference.info_nce.__doc__


class _InfoNCE(torch.autograd.Function):
    """The loss, with the query's gradient computed on the way."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, rest: tuple[Any, ...]) -> Tensor:
        # The constants come as one tuple: autograd looks at every argument of its own.
        loss, grad, scale = _ops.info_nce(query, *rest)
        ctx.save_for_backward(grad, scale, loss)
        assert isinstance(loss, Tensor)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad, scale, loss = ctx.saved_tensors
        return scaled("info_nce", loss, grad, upstream[0], scale), None
