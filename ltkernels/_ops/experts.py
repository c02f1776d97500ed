"""The native op `experts`, and what it returns for tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import empty_loss

experts = torch.ops.ltkernels.experts.default

MOST_EXPERTS = 16
# What `cross_entropy` and `divergence` of the op say.
NO_CROSS_ENTROPY, OF_EACH, OF_MEAN = 0, 1, 2
NO_DIVERGENCE, FROM_MEAN, PAIRWISE = 0, 1, 2


@torch.library.register_fake("ltkernels::experts")  # type: ignore[untyped-decorator]
def _(
    logits: list[Tensor],
    target: Tensor | None,
    margin: Tensor | None,
    class_weight: Tensor | None,
    cross_entropy: int,
    ce_factor: float,
    divergence: int,
    temperature: float,
    row_temperature: Tensor | None,
    column_temperature: Tensor | None,
    kl_factor: float,
    row_factor: Tensor | None,
    sample_weight: Tensor | None,
    weight_of_second: bool,
    first_gradient: bool,
    second_gradient: bool,
    reduction: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    first = logits[0]
    rows, columns = first.shape
    if not gradient:
        empty = first.new_empty(0, dtype=torch.float32)
        return empty_loss(first, reduction), empty, empty.clone()
    scale = (len(logits), rows) if first.dtype == torch.float16 else 0
    return (
        empty_loss(first, reduction),
        first.new_empty(len(logits), rows, columns),
        first.new_empty(scale, dtype=torch.float32),
    )
