"""Inputs that a kernel reads but has no gradient for."""

from __future__ import annotations

import torch
from torch import Tensor


def constant(x: Tensor, logits: Tensor) -> Tensor:
    """`x` as the kernels read it: contiguous, in the dtype of the arithmetic on `logits`."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    # Only what is needed: small batches feel every call.
    if x.requires_grad:
        x = x.detach()
    if x.dtype != dtype:
        x = x.to(dtype)
    return x.contiguous()
