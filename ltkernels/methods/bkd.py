"""Balanced knowledge distillation.

Zhang et al., "Balanced knowledge distillation for long-tailed learning", Neurocomputing 2023.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltkernels.losses import BKDLoss

from .kd import KD

if TYPE_CHECKING:
    from torch import nn

    from .method import Context

__all__ = ["BKD"]


class BKD(KD):
    """Distillation from a teacher whose predictions are balanced by class weights (Algorithm 1).

    1. Train the teacher with plain cross-entropy on the long-tailed set (as for ``kd``).
    2. Class weights by effective numbers: ``w_c ~ (1 - beta) / (1 - beta^n_c)`` (eq. 2); 1 before
       the deferred epoch, which the paper uses on CIFAR-10 only.
    3. Balance the softened teacher: ``q ~ w softmax(z_t / T)``, renormalised (eq. 7).
    4. Minimise ``CE(z_s, y) + alpha T^2 KL(q || softmax(z_s / T))`` (eq. 8), on mixed images where
       ``mixup_alpha`` is set (the paper mixes, the released code does not).
    """

    name = "bkd"
    summary = "balanced knowledge distillation"
    reads = frozenset({"teacher", "temperature", "loss.alpha", "loss.beta", "loss.deferred"})
    keeps_prior = False

    def build_criterion(self, context: Context) -> nn.Module:
        """Eq. 8 with the weights of eq. 2."""
        config = context.config
        return BKDLoss(
            context.class_counts,
            T=config.temperature,
            alpha=config.loss.alpha,
            drw_epoch=config.deferred_epoch,
            beta=config.loss.beta,
        )
