"""Plain cross-entropy: the baseline of every table, and the teacher of distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .method import Batch, Method

__all__ = ["CrossEntropy"]


class CrossEntropy(Method):
    """Minimise ``CE(z, y)``, with label smoothing on request."""

    name = "ce"
    summary = "plain cross-entropy"
    reads = frozenset({"loss.label_smoothing", "loss.tau"})
    keeps_prior = True

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """``CE(z, y)``, the mean over the batch."""
        logits, smoothing = outputs.float(), self.context.config.loss.label_smoothing
        return batch.mixed(lambda y: F.cross_entropy(logits, y, label_smoothing=smoothing))
