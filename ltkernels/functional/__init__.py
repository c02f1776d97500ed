"""Losses and routing as functions, drop-in for `torch.nn.functional`'s.

`kd_loss`, `bkd_loss`, `adjusted_cross_entropy` and what routes samples between experts are fused: a
call takes the kernel of its tensors' device, and the definition of the same name in
`ltkernels.reference` where there is none (other devices, forward-mode AD, torch.func transforms, an
input the kernel has no gradient for). The losses on several experts have no kernel yet; here they
are their definitions.
"""

from ..reference import (
    collaborative_kd_loss,
    diversity_loss,
    info_nce,
    knowledge_balance_weight,
    ride_loss,
)
from .adjusted_cross_entropy import adjusted_cross_entropy
from .distillation import bkd_loss, kd_loss
from .routing import route_experts, routing_loss, routing_target, topz_gate

__all__ = [
    "adjusted_cross_entropy",
    "bkd_loss",
    "collaborative_kd_loss",
    "diversity_loss",
    "info_nce",
    "kd_loss",
    "knowledge_balance_weight",
    "ride_loss",
    "route_experts",
    "routing_loss",
    "routing_target",
    "topz_gate",
]
