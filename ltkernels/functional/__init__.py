"""Fused losses, drop-in for `torch.nn.functional`'s: the same names as in `ltkernels.reference`.

A call takes the kernel of its tensors' device; where there is none (other devices, forward-mode AD,
torch.func transforms, an input the kernel has no gradient for) it takes the definition.
"""

from .adjusted_cross_entropy import adjusted_cross_entropy
from .distillation import bkd_loss, kd_loss

__all__ = ["adjusted_cross_entropy", "bkd_loss", "kd_loss"]
