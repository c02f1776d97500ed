"""The native ops, a file each.

Overloads are looked up once: an attribute access of torch.ops costs as much as a small kernel.
"""

from ._library import REDUCTION_CODE, built_for_cuda
from .adjusted_cross_entropy import adjusted_cross_entropy
from .distillation import distillation
from .info_nce import info_nce
from .knowledge_balance_weight import knowledge_balance_weight
from .scale_gradient import scale_gradient

__all__ = [
    "REDUCTION_CODE",
    "adjusted_cross_entropy",
    "built_for_cuda",
    "distillation",
    "info_nce",
    "knowledge_balance_weight",
    "scale_gradient",
]
