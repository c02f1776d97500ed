"""Losses and routing as functions, drop-in for `torch.nn.functional`'s.

Each is fused: a call takes the kernel of its tensors' device, and the definition of the same name
in `ltkernels.reference` where there is none (other devices, forward-mode AD, torch.func transforms,
an input the kernel has no gradient for).
"""

from .adjusted_cross_entropy import adjusted_cross_entropy
from .collaboration import collaborative_kd_loss
from .contrast import info_nce
from .distillation import bkd_loss, kd_loss
from .diversity import diversity_loss, ride_loss
from .knowledge_balance import knowledge_balance_weight
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
