"""Knowledge distillation from a teacher trained with plain cross-entropy.

Hinton et al., "Distilling the knowledge in a neural network", 2015.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ltkernels.losses import KDLoss

from .method import Batch, Context, Method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ltkernels.train.config import Config

__all__ = ["KD"]


class KD(Method):
    """Learn from the labels and from the teacher's softened predictions.

    1. A teacher of the student's architecture is trained with plain cross-entropy, or given.
    2. The student minimises ``CE(z_s, y) + alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T))`` on
       images (mixed, where mixup is on) that both networks see alike.
    """

    name = "kd"
    summary = "knowledge distillation from a cross-entropy teacher"
    reads = frozenset(
        {"teacher", "temperature", "loss.alpha", "loss.beta", "loss.deferred", "loss.weighted_ce"}
    )
    keeps_prior = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.criterion = self.build_criterion(context)

    def build_criterion(self, context: Context) -> nn.Module:
        """The loss of student logits, teacher logits and labels."""
        config = context.config
        weighted = config.loss.weighted_ce
        return KDLoss(
            context.class_counts,
            T=config.temperature,
            weight="effective_number" if weighted else None,
            alpha=config.loss.alpha,
            drw_epoch=config.deferred_epoch if weighted else None,
            beta=config.loss.beta,
        )

    @classmethod
    def prerequisites(cls, config: Config) -> dict[str, Config]:
        """The teacher: the same run with plain cross-entropy, unmixed, its last epoch."""
        return {
            "teacher": replace(config, method="ce", teacher="", mixup_alpha=0.0, selection="last")
        }

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Student and teacher logits of the same images."""
        with torch.no_grad():
            teacher = self.context.teachers["teacher"].predict(batch.inputs)
        return self.model(batch.inputs), teacher

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """``CE + alpha T^2 KL``, the mean over the batch."""
        student, teacher = outputs
        mix = {} if batch.labels_b is None else {"target_b": batch.labels_b, "lam": batch.lam}
        total: Tensor = self.criterion(student, teacher, batch.labels, **mix)
        return total
