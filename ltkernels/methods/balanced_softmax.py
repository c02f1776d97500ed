"""Balanced softmax: the training prior in the loss, gone at test time.

Ren et al., "Balanced meta-softmax for long-tailed visual recognition", NeurIPS 2020.
"""

from __future__ import annotations

from torch import Tensor

from ltkernels.losses import LogitAdjustedLoss

from .method import Batch, Context, Method

__all__ = ["BalancedSoftmax"]


class BalancedSoftmax(Method):
    """Minimise ``CE(z + tau log(n_c / N), y)``, predict with ``z``; ``tau`` is 1 in the paper."""

    name = "balanced_softmax"
    summary = "cross-entropy with the log prior added to the logits"
    reads = frozenset({"loss.tau"})

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.criterion = LogitAdjustedLoss(context.class_counts, tau=context.config.loss.tau)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The adjusted cross-entropy, the mean over the batch."""
        return batch.mixed(lambda y: self.criterion(outputs, y))
