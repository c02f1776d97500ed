"""Class-balanced experts.

Sharma et al., "Long-tailed recognition using class-balanced experts", DAGM GCPR 2020.

Two rows of the paper's ensemble are other papers' methods and have their place here: f-VAEGAN-D2's
generated features would be a :class:`Method` whose classifier learns from features of its own
making, and OLTR's memory one whose ``predict`` asks it. Both join the ensemble as any run or file
of logits does, through ``python -m ltkernels.fuse``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ltkernels import functional as F
from ltkernels.data import load_batches
from ltkernels.data.sampling import derived_generator
from ltkernels.fusion import balanced_weight, make_fusion, reject_correction
from ltkernels.losses import OutlierExposureLoss
from ltkernels.nn.expert_bank import ExpertBank

from .cbe_report import fusion_report
from .method import Batch, Context, Method, Stage, TestSet
from .subset_expert import subsets_of

if TYPE_CHECKING:
    from ltkernels.train.config import Config

__all__ = ["CBE"]


class CBE(Method):
    """An expert for many-, medium- and few-shot classes each, and what joins them.

    1. A baseline is trained on all classes with plain cross-entropy (``start``, or a run of its
       own).
    2. Each expert begins with the baseline's features and learns the classes of its subset; those
       of fewer images keep the lower blocks as they are. Images of other classes, undersampled, are
       a class of their own ("reject"), or the expert learns to be undecided about them (outlier
       exposure).
    3. The experts' posteriors become one by a fusion that is fitted on images held out of training.
    """

    name = "cbe"
    summary = "class-balanced experts, fused on held-out images"
    defaults: ClassVar[Mapping[str, Any]] = {
        "data": {"holdout": 0.1, "holdout_min": 1},
        "subsets": {"rule": "sharma"},
    }
    reads = frozenset({"start", "cbe", "subsets"})

    model: ExpertBank

    def __init__(self, context: Context) -> None:
        nn.Module.__init__(self)
        self.context = context
        cbe = context.config.cbe
        counts = context.class_counts
        subsets = subsets_of(context.config.subsets, counts)
        self.reject = cbe.mechanism == "reject"
        networks = [context.build_model(num_classes=len(own) + int(self.reject)) for own in subsets]
        if "start" in context.teachers:
            trained = context.teachers["start"].model.state_dict()
            for network in networks:
                network.load_state_dict({**network.state_dict(), **_features(trained)})
        fusion = make_fusion(
            cbe.fusion,
            subsets,
            len(counts),
            reject=self.reject,
            per=cbe.calibrate,
            calibration_decay=cbe.calibration_decay,
        )
        corrections = [
            reject_correction(
                cbe.reject_correction,
                _of(cbe.open_ratio, e),
                known=len(own),
                num_classes=len(counts),
            )
            for e, own in enumerate(subsets)
            if self.reject
        ]
        self.model = ExpertBank(networks, fusion, corrections)
        self._ranks = [_rank(own, len(counts)) for own in subsets]
        self._exposure = OutlierExposureLoss(cbe.exposure)
        self._expert = 0
        self._frozen: list[nn.Module] = []

    @classmethod
    def complete(cls, config: Config) -> Config:
        """The network's keys are those of the run to start from."""
        from ltkernels.train import load_config

        return replace(
            config, model=load_config(Path(config.start)).model if config.start else config.model
        )

    @classmethod
    def prerequisites(cls, config: Config) -> dict[str, Config]:
        """The baseline: plain cross-entropy on all classes of the same images."""
        return {"start": replace(config, method="ce", start="")}

    def stages(self) -> tuple[Stage, ...]:
        """A stage an expert."""
        config, cbe = self.context.config, self.context.config.cbe
        cosine = replace(config.schedule, kind="cosine", warmup=0.0)
        names = expert_names(len(self._ranks))
        return tuple(
            Stage(name, cbe.epochs, cbe.batch_size, cbe.lr, cbe.weight_decay, cosine)
            for name in names
        )

    def on_stage_start(self, stage: Stage) -> None:
        """One expert learns, its lower blocks do not."""
        self._expert = [s.name for s in self.stages()].index(stage.name)
        depth = _of(self.context.config.cbe.learnable, self._expert)
        self._frozen = self.model.freeze_below(self._expert, depth)

    def train(self, mode: bool = True) -> CBE:
        """Experts that do not learn keep their statistics, and frozen blocks where so set."""
        super().train(mode)
        for e, network in enumerate(self.model.networks):
            network.train(mode and e == self._expert)
        if self.context.config.cbe.frozen_statistics:
            for module in self._frozen:
                module.eval()
        return self

    def order(self, stage: Stage, epoch: int) -> Tensor:
        """The expert's images and an undersampled draw of the others, in random order."""
        config, cbe = self.context.config, self.context.config.cbe
        e = [s.name for s in self.stages()].index(stage.name)
        rank = self._ranks[e][self.context.dataset.train_labels.cpu()]
        own, others = (rank >= 0).nonzero().flatten(), (rank < 0).nonzero().flatten()
        ratio = _of(cbe.open_ratio, e) if self.reject else cbe.outlier_ratio
        draw = derived_generator(config.seed, "others", e, epoch if cbe.redraw else 0)
        chosen = others[torch.randperm(len(others), generator=draw)[: len(own) // ratio]]
        together = torch.cat([own, chosen])
        shuffle = derived_generator(config.seed, "shuffle", e, epoch)
        return together[torch.randperm(len(together), generator=shuffle)]

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the expert that learns."""
        logits: Tensor = self.model.networks[self._expert](batch.inputs)
        return logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy with the reject class; or with the term on outliers."""
        rank = self._ranks[self._expert].to(outputs.device)
        if not self.reject:
            return batch.mixed(lambda y: self._exposure(outputs, rank[y], rank[y] < 0))
        reject = outputs.shape[1] - 1
        return batch.mixed(
            lambda y: F.adjusted_cross_entropy(outputs, torch.where(rank[y] < 0, reject, rank[y]))
        )

    def expert_logits(self, images: Tensor) -> list[Tensor]:
        """The experts' logits ``[N, S_e (+ 1)]`` of normalised images, as the fusion sees them."""
        return self.model.expert_logits(images)

    def on_stage_end(self, stage: Stage) -> None:
        """After the last expert: the fusion."""
        if stage.name == self.stages()[-1].name:
            self.fit(self.model.fusion)

    def fit(self, fusion: Any) -> None:
        """Fit a fusion on the images held out of training."""
        logits, labels = self.validation_logits()
        weight = balanced_weight(labels) if self.context.config.cbe.balanced_fit else None
        fusion.fit(logits, labels, sample_weight=weight)

    @torch.no_grad()
    def validation_logits(self) -> tuple[list[Tensor], Tensor]:
        """The experts' logits of the images held out of training, and their labels, on the CPU."""
        assert self.context.validation is not None
        inputs, labels = self.context.validation
        training = self.training
        self.eval()
        normalize, device = self.context.dataset.transform.normalize, self.context.device
        positions = torch.split(torch.arange(len(inputs)), 512)
        with closing(load_batches(inputs, positions)) as batches:
            chunks = [self.expert_logits(normalize(x.to(device))) for x in batches]
        self.train(training)
        joined = [torch.cat(rows).cpu() for rows in zip(*chunks, strict=True)]
        return joined, labels.cpu()

    def report(self, test: TestSet) -> dict[str, Any]:
        """All five strategies, the oracle, and what the experts do alone."""
        return fusion_report(self, test)


def expert_names(count: int) -> tuple[str, ...]:
    """The experts in words, from the classes with most images on."""
    if count == 3:
        return ("many", "medium", "few")
    return tuple(f"expert {e + 1}" for e in range(count))


def _of(values: Sequence[int], e: int) -> int:
    """Expert e's value; the last one stands for the rest."""
    return values[min(e, len(values) - 1)]


def _rank(own: Tensor, num_classes: int) -> Tensor:
    """Column of each class, int64 ``[C]``; -1 where the expert does not know it."""
    rank = torch.full((num_classes,), -1)
    rank[own] = torch.arange(len(own))
    return rank


def _features(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a network's state is not its classifier's."""
    return {k: v for k, v in state.items() if not k.startswith(("linear.", "fc."))}
