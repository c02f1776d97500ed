"""The native ops `routing_loss`, `routing_target`, `route_experts`, and their fake results."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import empty_loss

routing_loss = torch.ops.ltkernels.routing_loss.default
routing_target = torch.ops.ltkernels.routing_target.default
route_experts = torch.ops.ltkernels.route_experts.default


@torch.library.register_fake("ltkernels::routing_loss")  # type: ignore[untyped-decorator]
def _(
    gate: Tensor, needs_help: Tensor, pos_weight: float, reduction: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    loss = empty_loss(gate, reduction)
    if gradient:
        return loss, gate.new_empty(gate.shape, dtype=loss.dtype)
    return loss, gate.new_empty(0, dtype=torch.float32)


@torch.library.register_fake("ltkernels::routing_target")  # type: ignore[untyped-decorator]
def _(expert_logits: list[Tensor], target: Tensor) -> Tensor:
    return target.new_empty((len(expert_logits) - 1, target.shape[0]), dtype=torch.bool)


@torch.library.register_fake("ltkernels::route_experts")  # type: ignore[untyped-decorator]
def _(
    expert_logits: list[Tensor],
    features: list[Tensor],
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    z: int,
    threshold: float,
) -> tuple[Tensor, Tensor]:
    n, c = expert_logits[0].shape
    return w1.new_empty(n, c), w1.new_empty(n, dtype=torch.int64)
