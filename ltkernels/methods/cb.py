"""Class-balanced cross-entropy by the effective number of samples.

Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019.
"""

from __future__ import annotations

from torch import Tensor

from ltkernels.losses import ClassBalancedLoss

from .method import Batch, Context, Method

__all__ = ["ClassBalanced"]


class ClassBalanced(Method):
    """Minimise ``w_y CE(z, y)`` with ``w_c ~ (1 - beta) / (1 - beta^n_c)``.

    The weights are 1 before the deferred epoch, where one is set.
    """

    name = "cb"
    summary = "cross-entropy weighted by effective numbers"
    reads = frozenset({"loss.beta", "loss.deferred"})

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config
        self.criterion = ClassBalancedLoss(
            context.class_counts, beta=config.loss.beta, drw_epoch=config.deferred_epoch
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The weighted mean over the batch, as ``F.cross_entropy`` takes it."""
        return batch.mixed(lambda y: self.criterion(outputs, y))
