"""The native ops, a file each.

Overloads are looked up once: an attribute access of torch.ops costs as much as a small kernel.
"""

from ._library import REDUCTION_CODE, built_for_cuda
from .adjusted_cross_entropy import adjusted_cross_entropy
from .distillation import distillation
from .routing import MOST_EXPERTS, route_experts, routing_loss, routing_target
from .scale_gradient import scale_gradient
from .topz_gate import topz_gate, topz_gate_backward

__all__ = [
    "MOST_EXPERTS",
    "REDUCTION_CODE",
    "adjusted_cross_entropy",
    "built_for_cuda",
    "distillation",
    "route_experts",
    "routing_loss",
    "routing_target",
    "scale_gradient",
    "topz_gate",
    "topz_gate_backward",
]
