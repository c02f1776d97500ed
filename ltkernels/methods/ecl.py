"""Effective collaborative learning.

Xu et al., "Towards effective collaborative learning in long-tailed recognition", IEEE Transactions
on Multimedia 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ltkernels.losses import ECLLoss
from ltkernels.nn import build_head

from .collaborative import Collaborative
from .method import Batch, Context

__all__ = ["ECL"]


class ECL(Collaborative):
    """Experts that teach each other what each of them has not learnt yet.

    1. Every expert has a classification head and a reference head on one feature; both minimise the
       balanced cross-entropy (eqs. 3, 10), only the classification head is taught.
    2. Balanced knowledge transfer: an expert learns an image from the others the more, the further
       its classification head lags behind its reference head (eqs. 5-7).
    3. Feature level distillation: the features, as distributions over channels, approach each
       other (eq. 8).
    4. Contrastive proxy task: MoCo for every expert (eq. 9).
    5. Test: the mean of the classification heads' logits; the reference heads and the contrast are
       dropped.
    """

    name = "ecl"
    summary = "effective collaborative learning: experts that teach each other what they lack"
    defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": {"nesterov": False},
        "schedule": {"kind": "cosine", "warmup": 0.0},
    }
    reads = Collaborative.reads | {"ecl", "loss.tau"}

    def __init__(self, context: Context) -> None:
        config, ecl = context.config, context.config.ecl
        super().__init__(context, contrast=ecl.beta > 0)
        self.reference = nn.ModuleList(
            build_head(
                config.model.head,
                self.model.num_features,
                self.model.num_classes,
                config.model.scale,
            )
            for _ in range(config.experts)
        )
        self.criterion = ECLLoss(
            context.class_counts,
            ecl.alpha,
            ecl.beta,
            tau=config.loss.tau,
            temperature=ecl.temperature,
            contrast_temperature=config.contrast.temperature,
            expert_reduction=ecl.expert_reduction,
            transfer=ecl.transfer != "none",
            balance=ecl.transfer == "balanced",
            ratio=ecl.ratio,
            unbiased=ecl.unbiased,
            detach=ecl.detach,
            normalize_mean=ecl.normalize_mean,
            eps=ecl.eps,
            kd_logits=ecl.kd_logits,
            direction=ecl.direction,
            detach_teacher=ecl.detach_teacher,
            feature_reduction=ecl.feature_reduction,
            normalize=False,  # they are
            contrast_expert_reduction=ecl.contrast_expert_reduction,
            contrast_reduction=ecl.contrast_reduction,
        )

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, ...]]:
        """Outputs of the experts, and the logits ``ref`` of their reference heads."""
        outputs = super().forward(batch)
        pairs = zip(self.reference, outputs["features"], strict=True)
        return {**outputs, "ref": tuple(head(feature) for head, feature in pairs)}

    def loss(self, outputs: dict[str, tuple[Tensor, ...]], batch: Batch) -> Tensor:
        """Eq. 11."""
        contrast: dict[str, Any] = {}
        if self.contrast is not None:
            contrast = {k: outputs[k] for k in ("query", "key")} | {"queue": self.contrast.queue}
        features = outputs["features"] if self.context.config.ecl.feature_transfer else None
        return batch.mixed(
            lambda y: self.criterion(
                outputs["cls"], outputs["ref"], y, features=features, **contrast
            )
        )
