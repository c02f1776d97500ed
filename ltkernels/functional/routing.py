"""`topz_gate`, `routing_loss` and `routing_target`, as their definitions are called."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from .._checks import Experts, Reduction


def topz_gate(
    logits: Tensor,
    feature: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    z: int = 30,
) -> Tensor:
    return reference.topz_gate(
        logits,
        feature,
        w1,
        b1,
        w2,
        b2,
        z,
    )


def routing_loss(
    gate: Tensor,
    needs_help: Tensor,
    pos_weight: float = 100.0,
    reduction: Reduction = "mean",
) -> Tensor:
    return reference.routing_loss(
        gate,
        needs_help,
        pos_weight,
        reduction,
    )


def routing_target(expert_logits: Experts, target: Tensor) -> Tensor:
    return reference.routing_target(
        expert_logits,
        target,
    )


topz_gate.__doc__ = reference.topz_gate.__doc__
routing_loss.__doc__ = reference.routing_loss.__doc__
routing_target.__doc__ = reference.routing_target.__doc__
