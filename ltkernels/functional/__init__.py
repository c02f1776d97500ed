"""Fused losses, drop-in for `torch.nn.functional`'s: the same names as in `ltkernels.reference`.

A call takes the kernel of its tensors' device; where there is none (other devices, forward-mode AD,
torch.func transforms, an input the kernel has no gradient for) it takes the definition.
"""

from .adjusted_cross_entropy import adjusted_cross_entropy
from .collaboration import collaborative_kd_loss, knowledge_balance_weight
from .contrast import info_nce
from .distillation import bkd_loss, kd_loss
from .diversity import diversity_loss, ride_loss
from .routing import routing_loss, routing_target, topz_gate

__all__ = [
    "adjusted_cross_entropy",
    "bkd_loss",
    "collaborative_kd_loss",
    "diversity_loss",
    "info_nce",
    "kd_loss",
    "knowledge_balance_weight",
    "ride_loss",
    "routing_loss",
    "routing_target",
    "topz_gate",
]
