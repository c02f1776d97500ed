"""Focal loss.

Lin et al., "Focal loss for dense object detection", ICCV 2017.
"""

from __future__ import annotations

from torch import Tensor

from ltkernels.losses import FocalLoss

from .method import Batch, Context, Method

__all__ = ["Focal"]


class Focal(Method):
    """Minimise ``(1 - p_y)^gamma CE(z, y)``: well-classified images weigh little."""

    name = "focal"
    summary = "focal loss"
    reads = frozenset({"loss.focal_gamma"})

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.criterion = FocalLoss(gamma=context.config.loss.focal_gamma)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The focal loss, the mean over the batch."""
        return batch.mixed(lambda y: self.criterion(outputs, y))
