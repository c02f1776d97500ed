"""The definitions: every op in plain PyTorch, to be read beside its paper.

They are differentiable any number of times, in forward and in reverse mode, and work on every
device. `ltkernels.functional` has the same names and signatures, fused.
"""

from .adjusted_cross_entropy import adjusted_cross_entropy
from .distillation import bkd_loss, kd_loss

__all__ = ["adjusted_cross_entropy", "bkd_loss", "kd_loss"]
