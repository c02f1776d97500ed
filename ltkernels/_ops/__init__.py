"""The native ops, a file each.

Overloads are looked up once: an attribute access of torch.ops costs as much as a small kernel.
"""

from ._library import REDUCTION_CODE, built_for_cuda
from .adjusted_cross_entropy import adjusted_cross_entropy
from .distillation import distillation
from .experts import (
    FROM_MEAN,
    MOST_EXPERTS,
    NO_CROSS_ENTROPY,
    NO_DIVERGENCE,
    OF_EACH,
    OF_MEAN,
    PAIRWISE,
    experts,
)
from .info_nce import info_nce
from .knowledge_balance_weight import knowledge_balance_weight
from .routing import route_experts, routing_loss, routing_target
from .scale_gradient import scale_gradient
from .subset_distillation import MOST_SUBSETS, subset_distillation
from .topz_gate import topz_gate, topz_gate_backward

__all__ = [
    "FROM_MEAN",
    "MOST_EXPERTS",
    "MOST_SUBSETS",
    "NO_CROSS_ENTROPY",
    "NO_DIVERGENCE",
    "OF_EACH",
    "OF_MEAN",
    "PAIRWISE",
    "REDUCTION_CODE",
    "adjusted_cross_entropy",
    "built_for_cuda",
    "distillation",
    "experts",
    "info_nce",
    "knowledge_balance_weight",
    "route_experts",
    "routing_loss",
    "routing_target",
    "scale_gradient",
    "subset_distillation",
    "topz_gate",
    "topz_gate_backward",
]
