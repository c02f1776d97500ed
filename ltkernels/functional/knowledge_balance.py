"""`knowledge_balance_weight`, fused: one pass over the logits of both heads."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, _ops, reference


def knowledge_balance_weight(
    ref_logits: Tensor, cls_logits: Tensor, target: Tensor, *, eps: float = 1e-6
) -> Tensor:
    _checks.knowledge_balance_weight(ref_logits, cls_logits, target, eps)
    if not _backend.use_fused("knowledge_balance_weight", cls_logits):
        return reference.knowledge_balance_weight(ref_logits, cls_logits, target, eps=eps)
    ref, cls = ref_logits.detach(), cls_logits.detach()
    if ref.dtype != cls.dtype:  # the kernel takes one: the wider of the two, which loses nothing
        dtype = torch.promote_types(ref.dtype, cls.dtype)
        ref, cls = ref.to(dtype), cls.to(dtype)
    weight = _ops.knowledge_balance_weight(ref, cls, target.contiguous(), eps)
    assert isinstance(weight, Tensor)
    return weight


knowledge_balance_weight.__doc__ = reference.knowledge_balance_weight.__doc__
