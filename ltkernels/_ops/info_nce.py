"""The native op `info_nce`, and what it returns for tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import empty_gradient, empty_loss, empty_scale

info_nce = torch.ops.ltkernels.info_nce.default


@torch.library.register_fake("ltkernels::info_nce")  # type: ignore[untyped-decorator]
def _(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float,
    row_temperature: Tensor | None,
    reduction: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty_loss(query, reduction),
        empty_gradient(query, gradient),
        empty_scale(query, gradient and query.dtype == torch.float16),
    )
