"""Inputs that a kernel reads but has no gradient for."""

from __future__ import annotations

from torch import Tensor

from .. import _checks


def constant(x: Tensor, logits: Tensor) -> Tensor:
    """`x` as the kernels read it: contiguous, in the dtype of the arithmetic on `logits`."""
    dtype = _checks.compute_dtype(logits)
    if x.dtype == dtype and not x.requires_grad and x.is_contiguous():
        return x  # three calls fewer, which small batches feel
    return x.detach().to(dtype).contiguous()
