"""Label-distribution-aware margins with deferred re-weighting.

Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ltkernels.losses import LDAMLoss

from .method import Batch, Context, Method

__all__ = ["LDAMDRW"]


class LDAMDRW(Method):
    """A cosine classifier with margin ``m_c ~ n_c^(-1/4)``; class weights in the last fifth.

    1. logits ``z = s cos(f, w)``; the margin is taken off the true class: ``z_y - s m_y``.
    2. Until the deferred epoch the loss is unweighted, so that features are learnt from the data as
       it is; then weights by effective numbers, while the learning rate is small.
    """

    name = "ldam_drw"
    summary = "LDAM margins with deferred re-weighting, cosine classifier"
    defaults: ClassVar[Mapping[str, Any]] = {"model": {"head": "cosine"}, "loss": {"deferred": 0.8}}
    reads = frozenset({"loss.beta", "loss.deferred", "loss.max_margin"})

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config
        self.criterion = LDAMLoss(
            context.class_counts,
            max_m=config.loss.max_margin,
            s=config.model.scale,
            prescaled=config.model.head == "cosine",
            drw_epoch=config.deferred_epoch,
            beta=config.loss.beta,
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The margin loss, the weighted mean over the batch."""
        return batch.mixed(lambda y: self.criterion(outputs, y))
