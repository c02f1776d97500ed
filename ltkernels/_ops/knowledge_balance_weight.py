"""The native op `knowledge_balance_weight`, and what it returns for tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import REDUCTION_CODE, empty_loss

knowledge_balance_weight = torch.ops.ltkernels.knowledge_balance_weight.default


@torch.library.register_fake("ltkernels::knowledge_balance_weight")  # type: ignore[untyped-decorator]
def _(ref_logits: Tensor, cls_logits: Tensor, target: Tensor, eps: float) -> Tensor:
    return empty_loss(ref_logits, REDUCTION_CODE["none"])
