"""Nested collaborative learning.

Li et al., "Nested collaborative learning for long-tailed visual recognition", CVPR 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltkernels import functional as F
from ltkernels.losses import NCLLoss

from .collaborative import Collaborative
from .method import Batch, Context

__all__ = ["NCL"]


class NCL(Collaborative):
    """Experts that learn and teach each other all categories and, nested in them, the hard ones.

    1. Nested individual learning: the balanced cross-entropy of every expert, over all categories
       and over an image's hard ones (hard category mining).
    2. Nested online distillation: every expert from every other, over both.
    3. Self-supervision: MoCo for every expert.
    4. Test: the mean of the experts' logits.
    """

    name = "ncl"
    summary = "nested collaborative learning: experts that teach each other, hard categories twice"
    reads = Collaborative.reads | {"ncl"}

    def __init__(self, context: Context) -> None:
        ncl = context.config.ncl
        super().__init__(context, contrast=ncl.contrast > 0)
        self.criterion = NCLLoss(
            context.class_counts,
            ncl.hard or None,
            ce_ratio=ncl.ce,
            hcm_ratio=ncl.hard_ce,
            diversity_factor=ncl.transfer,
            diversity_factor_hcm=ncl.hard_transfer,
            masking=ncl.masking,
            expert_reduction=ncl.expert_reduction,
        )

    def loss(self, outputs: dict[str, tuple[Tensor, ...]], batch: Batch) -> Tensor:
        """The nested terms, and the contrast, a sum over the experts as theirs."""
        loss = batch.mixed(lambda y: self.criterion(outputs["cls"], y))
        if self.contrast is None:
            return loss
        config = self.context.config
        triples = zip(outputs["query"], outputs["key"], self.contrast.queue, strict=True)
        terms = [F.info_nce(q, k, u, config.contrast.temperature) for q, k, u in triples]
        contrast = torch.stack(terms).sum()
        if config.ncl.expert_reduction == "mean":
            contrast = contrast / len(terms)
        return loss + config.ncl.contrast * contrast
