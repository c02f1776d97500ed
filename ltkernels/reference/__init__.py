"""The definitions: every op in plain PyTorch, to be read beside its paper.

They are differentiable any number of times, in forward and in reverse mode, and work on every
device. `ltkernels.functional` has the same names and signatures, fused.
"""

from .adjusted_cross_entropy import adjusted_cross_entropy
from .collaboration import collaborative_kd_loss, knowledge_balance_weight
from .contrast import info_nce
from .distillation import bkd_loss, kd_loss
from .diversity import diversity_loss, ride_loss
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
