"""Balanced knowledge distillation of routed diverse experts.

Zhang et al., "Balanced knowledge distillation for long-tailed learning", Neurocomputing 2023,
section 4.4 (RIDE-BKD).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ltkernels.losses import BKDLoss, RIDELoss
from ltkernels.reference.diversity import over_experts

from .method import Context
from .ride import RIDE

if TYPE_CHECKING:
    from ltkernels.train.config import Config

__all__ = ["RIDEBKD"]


class RIDEBKD(RIDE):
    """RIDE's experts, each taught by a class-balanced teacher in the place of its margin loss.

    1. Train the teacher, one network, with plain cross-entropy (as for ``bkd``).
    2. Experts: ``sum_k BKD(z^k, teacher)`` plus the reward for diversity; the routers as in RIDE.

    The paper gives the results and not the loss of the combination; this is the reading in which
    both methods stay what they are. No code is public.
    """

    name = "ride_bkd"
    summary = "RIDE's experts, each with balanced distillation"
    defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": {"nesterov": True},
        "weight_decay": 5e-4,
    }
    reads = (RIDE.reads - {"loss.max_margin"}) | {"temperature", "loss.alpha"}

    def build_criterion(self, context: Context) -> nn.Module:
        """BKD of every expert, and the diversity."""
        config, ride = context.config, context.config.ride
        return _RIDEBKDLoss(
            BKDLoss(
                context.class_counts,
                T=config.temperature,
                alpha=config.loss.alpha,
                drw_epoch=config.deferred_epoch,
                beta=config.loss.beta,
            ),
            RIDELoss(
                context.class_counts,
                base_diversity_temperature=ride.temperature,
                weight=None,
                reweight_epoch=config.deferred_epoch,
                base_loss_factor=0.0,
                additional_diversity_factor=ride.diversity,
                reweight_factor=ride.gamma,
                pairwise=ride.pairwise or None,
                preset=ride.preset,
            ),
        )

    @classmethod
    def prerequisites(cls, config: Config) -> dict[str, Config]:
        """The run to start from, where one is named; the teacher, one plain network."""
        needed = {
            name: run for name, run in super().prerequisites(config).items() if name == "start"
        }
        if not config.start:
            teacher = replace(config, method="ce", teacher="", mixup_alpha=0.0, selection="last")
            needed["teacher"] = teacher
        return needed


class _RIDEBKDLoss(nn.Module):
    def __init__(self, bkd: BKDLoss, diversity: RIDELoss) -> None:
        super().__init__()
        self.bkd, self.diversity = bkd, diversity

    def on_epoch_start(self, epoch: int) -> None:
        self.bkd.on_epoch_start(epoch)
        self.diversity.on_epoch_start(epoch)

    def forward(self, experts: tuple[Tensor, ...], target: Tensor, teacher: Tensor) -> Tensor:
        terms = [self.bkd(z, teacher, target) for z in experts]
        loss = over_experts(terms, self.diversity.expert_reduction)
        diversity: Tensor = self.diversity(experts, target)
        return loss + diversity
