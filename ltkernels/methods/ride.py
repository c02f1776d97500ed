"""Routed diverse experts.

Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts", ICLR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ltkernels import functional as F
from ltkernels._checks import Experts
from ltkernels.data.sampling import balanced_epoch_indices
from ltkernels.losses import BalancedSoftmaxLoss, RIDEDistillLoss, RIDELoss
from ltkernels.nn import MultiExpert, RoutedExperts
from ltkernels.reference.diversity import mean_logits, over_experts

from .method import Batch, Context, Method, Stage, TestSet
from .ride_report import routing_report

if TYPE_CHECKING:
    from ltkernels.train.config import Config

__all__ = ["RIDE"]


class RIDE(Method):
    """Experts on a shared stem that are to be right and different, and routers that spare most.

    1. Experts: each minimises its own loss (LDAM with deferred re-weighting); their divergence from
       the mean is rewarded, from the deferred epoch on with a temperature a class that lets them
       differ more on rare classes (eqs. 2-4). A RIDE model of more experts may teach
       (appendix A.2).
    2. Routers: the experts stand still; router i learns on class-balanced batches which images the
       first i experts get wrong together and a later one would mend (eq. 5).
    3. Test: an image is shown to expert after expert until a router sees no need.
    """

    name = "ride"
    summary = "routed diverse experts"
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": {"head": "cosine"},
        "loss": {"deferred": 0.8},
        "optimizer": {"nesterov": True},
        "weight_decay": 5e-4,
    }
    reads = frozenset(
        {
            "experts",
            "teacher",
            "start",
            "loss.beta",
            "loss.deferred",
            "loss.max_margin",
            "ride",
            "routing",
        }
    )

    needs_images = True

    model: MultiExpert | RoutedExperts

    def __init__(self, context: Context) -> None:
        nn.Module.__init__(self)
        self.context = context
        config = context.config
        network: MultiExpert = context.build_model(experts=config.experts)
        start = context.teachers.get("start")
        if start is not None:
            network.load_state_dict(_experts_of(start).state_dict())
        routing = config.routing
        self.model = (
            RoutedExperts(network, z=routing.z, hidden=routing.hidden, shared=routing.shared)
            if routing.epochs > 0
            else network
        )
        self._stage = ""
        self.criterion = self.build_criterion(context)

    def build_criterion(self, context: Context) -> nn.Module:
        """Eqs. 2-4, with the teacher's term where there is one."""
        config, ride = context.config, context.config.ride
        options: dict[str, Any] = {
            "base_diversity_temperature": ride.temperature,
            "max_m": config.loss.max_margin,
            "s": config.model.scale if config.model.head == "cosine" else 1.0,
            "reweight_epoch": config.deferred_epoch,
            "additional_diversity_factor": ride.diversity,
            "reweight_factor": ride.gamma,
            "beta": config.loss.beta,
            "collaborative": ride.collaborative,
            "pairwise": ride.pairwise or None,
            "preset": ride.preset,
        }
        counts = context.class_counts
        if ride.individual == "ldam":
            loss = RIDELoss(counts, **options)
        else:
            balanced = ride.individual == "balanced_softmax"
            individual = BalancedSoftmaxLoss(counts) if balanced else None
            loss = _IndividualRIDELoss(counts, individual=individual, **options)
        if not ride.distill:
            return loss
        distill = RIDEDistillLoss(
            additional_distill_loss_factor=ride.distill_factor,
            distill_temperature=ride.distill_temperature,
            preset=ride.preset,
        )
        distill.ride_loss = loss
        return distill

    @classmethod
    def prerequisites(cls, config: Config) -> dict[str, Config]:
        """The run to start from, where one is named; the teacher, where one is needed."""
        plain = replace(
            config,
            start="",
            teacher="",
            selection="last",
            ride=replace(config.ride, distill=False),
            routing=replace(config.routing, epochs=0),
        )
        needed = {}
        if config.start:
            needed["start"] = replace(plain, ride=config.ride, teacher=config.teacher)
        elif config.ride.distill:
            needed["teacher"] = replace(plain, experts=config.ride.teacher_experts)
        return needed

    @property
    def network(self) -> MultiExpert:
        """The experts, without routers."""
        return _experts_of(self)

    def stages(self) -> tuple[Stage, ...]:
        """The experts, unless the run starts from trained ones; then the routers."""
        config, routing = self.context.config, self.context.config.routing
        stages: tuple[Stage, ...] = ()
        if not config.start:
            stages = (replace(super().stages()[0], name="experts"),)
        if routing.epochs > 0:
            cosine = replace(config.schedule, kind="cosine", warmup=0.0)
            stages += (
                Stage(
                    "routers",
                    routing.epochs,
                    routing.batch_size,
                    routing.lr,
                    routing.weight_decay,
                    cosine,
                ),
            )
        return stages

    def on_stage_start(self, stage: Stage) -> None:
        """Train the experts or the routers, never both."""
        self._stage = stage.name
        routers = stage.name == "routers"
        self.requires_grad_(routers)
        self.network.requires_grad_(not routers)

    def train(self, mode: bool = True) -> RIDE:
        """Training mode; frozen experts keep their batch-norm statistics."""
        super().train(mode)
        if self._stage == "routers":
            self.network.eval()
        return self

    def order(self, stage: Stage, epoch: int) -> Tensor:
        """A permutation for the experts, a class-balanced epoch for the routers."""
        if stage.name != "routers":
            return super().order(stage, epoch)
        labels = self.context.dataset.train_labels
        return balanced_epoch_indices(labels, self.context.config.seed, epoch)

    def on_epoch_start(self, stage: Stage, epoch: int) -> None:
        """Deferred re-weighting is counted in epochs of the first stage."""
        if stage.name != "routers":
            super().on_epoch_start(stage, epoch)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """The experts' logits; the teacher's, or the gates ``[N, K - 1]`` in the second stage."""
        if self._stage == "routers":
            assert isinstance(self.model, RoutedExperts)
            gates, logits = self.model.gates_of_all(batch.inputs)
            return {"experts": logits, "gates": gates.t()}
        outputs: dict[str, Any] = {"experts": self.network(batch.inputs)}
        if "teacher" in self.context.teachers:
            with torch.no_grad():
                outputs["teacher"] = self.context.teachers["teacher"].predict(batch.inputs)
        return outputs

    def loss(self, outputs: dict[str, Any], batch: Batch) -> Tensor:
        """Eq. 4 (plus the teacher's term) of the experts, or eq. 5 of the routers."""
        experts = outputs["experts"]
        if "gates" in outputs:
            needs_help = F.routing_target(experts, batch.labels)
            weight = self.context.config.routing.pos_weight
            return F.routing_loss(outputs["gates"].t(), needs_help, weight)
        teacher = {"teacher": outputs["teacher"]} if "teacher" in outputs else {}
        return batch.mixed(lambda y: self.criterion(experts, y, **teacher))

    def predict(self, images: Tensor) -> Tensor:
        """Mean logits of the experts that each image is shown to; of all where nothing routes."""
        if isinstance(self.model, RoutedExperts) and self._stage != "experts":
            routed: Tensor = self.model(images, self._threshold).logits
            return routed
        return self.network.predict(images)

    @property
    def _threshold(self) -> float:
        """The routing threshold as a logit."""
        probability = self.context.config.routing.threshold
        return math.log(probability / (1 - probability))

    def report(self, test: TestSet) -> dict[str, Any]:
        """What the experts do alone and together, and what routing saves."""
        return routing_report(self.model, self.context.config.routing.threshold, test)


def _experts_of(method: Method) -> MultiExpert:
    model = method.model
    network = model.network if isinstance(model, RoutedExperts) else model
    assert isinstance(network, MultiExpert)
    return network


class _IndividualRIDELoss(RIDELoss):
    """RIDE's loss with another loss of each expert (or of their mean) in the place of LDAM."""

    def __init__(self, *args: Any, individual: nn.Module | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.individual = individual

    def _classification(
        self,
        experts: Experts,
        target: Tensor,
        temperature: float | Tensor,
        diversity_factor: float,
    ) -> Tensor:
        classifiers = tuple(experts)
        if self.collaborative:
            classifiers = (mean_logits(classifiers),) * len(classifiers)
        individual = self.individual or partial(F.adjusted_cross_entropy, reduction=self.reduction)
        loss = over_experts([individual(z, target) for z in classifiers], self.expert_reduction)
        if diversity_factor == 0:
            return loss
        return loss + diversity_factor * self._diversity(experts, temperature)
