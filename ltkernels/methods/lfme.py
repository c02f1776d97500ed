"""Learning from multiple experts.

Xiang et al., "Learning from multiple experts: self-paced knowledge distillation for long-tailed
classification", ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ltkernels import functional as F
from ltkernels.data.sampling import class_aware_epoch_indices
from ltkernels.data.subsets import format_longtailness, longtailness
from ltkernels.losses import LFMELoss
from ltkernels.metrics import class_accuracy
from ltkernels.schedules import expert_weight, instance_schedule, instance_start

from .method import Batch, Context, Method, Stage, TestSet
from .subset_expert import SubsetExpert, subsets_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ltkernels.data import Inputs, LongTailedDataset
    from ltkernels.train.config import Config
    from ltkernels.train.tables import LfmeConfig

__all__ = ["LFME", "PRESETS", "Preset"]

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Preset:
    """Where paper and released code differ; the keys of the ``lfme`` table of the same names."""

    alpha: float
    instance_start: Literal["paper", "official"]
    instance_span: float
    instance_clip: bool
    instance_weight_on: Literal["loss", "logits"]
    expert_epochs: float
    expert_schedule: Literal["same", "cosine"]
    expert_batch: Literal["same", "halved"]

    @classmethod
    def of(cls, config: LfmeConfig) -> Preset:
        """The preset a configuration names, with what it sets apart from it."""
        given = {field.name: getattr(config, field.name) for field in fields(cls)}
        given = {name: value for name, value in given.items() if value is not None}
        return replace(PRESETS[config.preset], **given)


PRESETS = {
    "paper": Preset(0.6, "paper", 1.0, True, "loss", 1.0, "same", "same"),
    # 120 epochs for 90 of the student, batches of 128, 64, 32 from many to few.
    "official": Preset(0.3, "official", 0.5, False, "logits", 4 / 3, "cosine", "halved"),
}


class LFME(Method):
    """A student of all classes, taught by experts of subsets as far as they are ahead of it.

    1. Experts: the classes are split by their number of images; an expert of each subset is trained
       on its images (sec. 4.1).
    2. Student, on batches with every class equally often: at the end of an epoch its accuracy on
       the classes of subset l, A_M, is compared with the expert's, A_E; the expert's distillation
       loss weighs ``w_l = 1`` up to ``A_M = alpha A_E`` and falls to 0 at ``A_E`` (sec. 4.2).
    3. An image's cross-entropy weighs v_i: the expert's confidence in it (smaller in subsets of
       many images), rising to 1 over the run, so that easy and rare images come first (sec. 4.3).
    4. Minimise ``mean_i [v_i CE(z_i, y_i) + sum_l w_l KL(expert_l || student on S_l)]`` (sec. 4.4).
    """

    name = "lfme"
    summary = "one student of experts of class subsets, at its own pace"
    reads = frozenset(
        {"temperature", "expert_runs", "loss.alpha", "loss.focal_gamma", "subsets", "lfme"}
    )

    start: Tensor
    """v of every training image before the first epoch, ``[N]``."""
    instance_weight: Tensor
    """v in this epoch, ``[N]``."""
    expert_weight: Tensor
    """w of each subset in this epoch, ``[L]``."""
    expert_accuracy: Tensor
    """A_E of each subset, a fraction among its own classes, ``[L]``."""
    student_accuracy: Tensor
    """A_M on each subset, a fraction among all classes, ``[L]``; 0 before the first epoch."""
    subset_of: Tensor
    """Subset of each class, int64 ``[C]``."""
    sums: Tensor
    """Of this epoch, over its images: the cross-entropy and each expert's divergence without their
    weights, and the number of images, float64 ``[L + 2]``."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config, self.options = context.config, context.config.lfme
        self.preset = Preset.of(config.lfme)
        self.subsets = subsets_of(config.subsets, context.class_counts)
        for index, classes in enumerate(self.subsets):
            expert = context.teachers.get(f"expert{index}")
            if expert is not None and not torch.equal(self._expert(index).classes.cpu(), classes):
                raise _config_error(
                    f"`expert_runs`: expected expert{index} to be of {len(classes)} classes from "
                    f"class {int(classes[0])} on, got one of {len(self._expert(index).classes)}"
                )
        self.criterion = LFMELoss(
            subsets=self.subsets,
            T=config.temperature,
            instance_weight_on=self.preset.instance_weight_on,
            t2=self.options.t2,
            focal_gamma=config.loss.focal_gamma if self.options.classification == "focal" else 0.0,
        )
        images, count = len(context.dataset.train_labels), len(self.subsets)
        subset_of = torch.full((len(context.class_counts),), -1)
        for index in reversed(range(count)):
            subset_of[self.subsets[index]] = index
        self.register_buffer("subset_of", subset_of)
        self.register_buffer("start", torch.ones(images))
        self.register_buffer("instance_weight", torch.ones(images))
        self.register_buffer("expert_weight", torch.ones(count))
        self.register_buffer("expert_accuracy", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("student_accuracy", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(count + 2, dtype=torch.float64))

    # -- the experts ------------------------------------------------------------------------------

    @classmethod
    def prerequisites(cls, config: Config) -> dict[str, Config]:
        """An expert of each subset, where anything is learnt from them."""
        if not (config.lfme.distill or config.lfme.instance_selection):
            return {}
        preset = Preset.of(config.lfme)
        schedule = config.schedule
        if preset.expert_schedule == "cosine":
            schedule = replace(schedule, kind="cosine")
        plain = replace(
            config,
            method=SubsetExpert.name,
            epochs=max(1, round(preset.expert_epochs * config.epochs)),
            schedule=schedule,
            teacher="",
            start="",
            expert_runs="",
            selection="last",
            mixup_alpha=0.0,
            lfme=type(config.lfme)(),  # the student's business: experts serve any student
        )
        halved = preset.expert_batch == "halved"
        return {
            f"expert{index}": replace(
                plain,
                batch_size=max(1, config.batch_size >> index) if halved else config.batch_size,
                subsets=replace(config.subsets, index=index),
            )
            for index in range(len(config.subsets.thresholds) + 1)
        }

    def _expert(self, index: int) -> SubsetExpert:
        expert = self.context.teachers[f"expert{index}"]
        if not isinstance(expert, SubsetExpert):
            raise _config_error(
                f"`expert_runs`: expected expert{index} to be a {SubsetExpert.name} run, got "
                f"{expert.name}"
            )
        return expert

    # -- the student ------------------------------------------------------------------------------

    @classmethod
    def preface(cls, config: Config, dataset: LongTailedDataset) -> str:
        """How long-tailed the data set and its subsets are (Table 1)."""
        subsets = config.subsets
        rows = longtailness(dataset.class_counts, subsets.thresholds, subsets.rule)
        return f"{dataset.name}, long-tailness\n{format_longtailness(rows)}\n"

    def order(self, stage: Stage, epoch: int) -> Tensor:
        """Every class equally often, some images of each at a time; or a permutation."""
        if self.options.sampling == "instance":
            return super().order(stage, epoch)
        return class_aware_epoch_indices(
            self.context.dataset.train_labels,
            self.context.config.seed,
            epoch,
            per_class=self.options.images_per_class,
        )

    def on_stage_start(self, stage: Stage) -> None:
        """What the experts know of the training images, and how good they are themselves."""
        if self.options.instance_selection:
            self.start.copy_(self._start())
        if self.selects_experts:
            images, labels = self._validation()
            for index in range(len(self.subsets)):
                expert = self._expert(index)
                accuracy = self._accuracy(images, labels, index, expert, expert.predict)
                self.expert_accuracy[index] = accuracy

    @property
    def selects_experts(self) -> bool:
        """Whether the experts' weights are anything but 1."""
        return self.options.distill and self.options.expert_selection

    def _start(self) -> Tensor:
        """v before the first epoch, from the experts' confidence in the unaugmented images."""
        data = self.context.dataset
        labels = data.train_labels.cpu()
        subset_of = self.subset_of.cpu()
        confidence = torch.ones(len(labels), dtype=torch.float64)
        counts = self.context.class_counts.cpu()
        mean_count = [float(counts[classes].double().mean()) for classes in self.subsets]
        for index in range(len(self.subsets)):
            own = (subset_of[labels] == index).nonzero().flatten()
            expert = self._expert(index)
            logits = self._rows(expert, data.train_inputs[own], expert.predict)
            probability = logits.double().softmax(1)
            confidence[own] = probability.gather(1, labels[own].unsqueeze(1)).squeeze(1)
        return instance_start(
            confidence.clamp(max=1),
            subset_of[labels],
            mean_count,
            labels=labels,
            preset=self.preset.instance_start,
        )

    def on_epoch_start(self, stage: Stage, epoch: int) -> None:
        """v grows with the epoch; the epochs count from 1, as in paper and code."""
        super().on_epoch_start(stage, epoch)
        if self.options.instance_selection:
            weight = instance_schedule(
                self.start,
                epoch + 1,
                self.preset.instance_span * stage.epochs,
                self.options.schedule,
                printed=self.options.printed,
                clip=self.preset.instance_clip,
            )
            self.instance_weight.copy_(weight)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """The student's logits, and each expert's ``[N, S_l]``."""
        outputs: dict[str, Any] = {"student": self.model(batch.inputs)}
        if self.options.distill:
            with torch.no_grad():
                outputs["experts"] = [
                    self._expert(index).subset_logits(batch.inputs)
                    for index in range(len(self.subsets))
                ]
        return outputs

    def loss(self, outputs: dict[str, Any], batch: Batch) -> Tensor:
        """``mean_i [v_i CE + sum_l w_l KL_l]``."""
        student = outputs["student"]
        v = self.instance_weight[batch.indices] if self.options.instance_selection else None
        self._account(outputs, batch)
        if not self.options.distill:
            return batch.mixed(lambda y: self.criterion.classification(student, y, v))
        w = self.context.config.loss.alpha * self.expert_weight
        return batch.mixed(lambda y: self.criterion(student, y, outputs["experts"], w, v))

    @torch.no_grad()
    def _account(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Add the losses without weights to the epoch's sums."""
        student, n = outputs["student"].detach(), len(batch.labels)
        self.sums[0] += n * batch.mixed(lambda y: self.criterion.classification(student, y))
        temperature, t2 = self.context.config.temperature, self.options.t2
        for index, expert in enumerate(outputs.get("experts", ())):
            classes = self.criterion.subsets[index]
            divergence = F.kd_loss(student, expert, temperature, classes=classes, t2=t2)
            self.sums[1 + index] += n * divergence
        self.sums[-1] += n

    def on_epoch_end(
        self, stage: Stage, epoch: int, accuracy: Mapping[str, float | None]
    ) -> Mapping[str, Any]:
        """Compare the student with the experts: the weights of the next epoch.

        Returns:
            The row of the epoch that ended: weights of experts, quantiles (0, 1/4 .. 1) of the
            images' weights by subset, and the losses without weights.
        """
        images_seen = float(self.sums[-1])
        losses = (self.sums[:-1] / images_seen).tolist()
        self.sums.zero_()
        row: dict[str, Any] = {"cross_entropy": losses[0]}
        if self.options.distill:
            row["divergence"] = losses[1:]
            row["expert_weight"] = self.expert_weight.tolist()
        if self.options.instance_selection:
            row["instance_weight"] = self._quantiles()
        if self.selects_experts:
            images, labels = self._validation()
            for index in range(len(self.subsets)):
                self.student_accuracy[index] = self._accuracy(images, labels, index, self)
            weight = expert_weight(
                self.student_accuracy,
                self.expert_accuracy,
                self.preset.alpha,
                clamp=self.options.clamp,
            )
            self.expert_weight.copy_(weight)
            row["student_accuracy"] = (100 * self.student_accuracy).tolist()
            row["expert_accuracy"] = (100 * self.expert_accuracy).tolist()
        return {"lfme": row}

    def _quantiles(self) -> list[list[float]]:
        labels = self.context.dataset.train_labels.to(self.subset_of.device)
        subset, weight = self.subset_of[labels], self.instance_weight.double()
        at = weight.new_tensor(QUANTILES)
        return [
            torch.quantile(weight[subset == index], at).tolist()
            for index in range(len(self.subsets))
        ]

    # -- who is ahead -----------------------------------------------------------------------------

    @property
    def validation(self) -> str:
        """Where accuracies are compared: ``holdout``, ``train`` or ``test``."""
        if self.options.validation != "auto":
            return self.options.validation
        return "train" if self.context.validation is None else "holdout"

    def _validation(self) -> tuple[Inputs, Tensor]:
        data, where = self.context.dataset, self.validation
        if where == "train":
            return data.train_inputs, data.train_labels.cpu()
        if where == "test":
            return data.test_inputs, data.test_labels.cpu()
        if self.context.validation is None:
            raise _config_error("`data.holdout`: expected above 0 with lfme.validation = holdout")
        inputs, labels = self.context.validation
        return inputs, labels.cpu()

    def _accuracy(
        self,
        inputs: Inputs,
        labels: Tensor,
        index: int,
        method: Method,
        predict: Callable[[Tensor], Tensor] | None = None,
    ) -> float:
        """Mean accuracy over the subset's classes that have an image, a fraction."""
        own = (torch.isin(labels, self.subsets[index])).nonzero().flatten()
        if len(own) == 0:
            raise _config_error(
                f"`data.holdout`: expected held-out images of every subset, got none of subset "
                f"{index}; hold out more, or set lfme.validation"
            )
        classes = len(self.subset_of)
        predicted = self._rows(method, inputs[own], predict).argmax(1)
        return float(class_accuracy(predicted, labels[own], classes).nanmean())

    def _rows(
        self, method: Method, inputs: Inputs, predict: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Logits of unaugmented inputs on the CPU; the processes share the inputs."""
        from ltkernels.train.distributed import World
        from ltkernels.train.evaluation import predict_logits

        run = partial(predict_logits, method, inputs, self.context.dataset.transform)
        return run(
            World.from_environment(),
            device=self.context.device,
            channels_last=self.context.config.channels_last,
            function=predict,
        )

    def report(self, test: TestSet) -> dict[str, Any]:
        """The subsets, and what the student was compared on."""
        counts = self.context.class_counts.cpu()
        report: dict[str, Any] = {
            "subsets": [
                {"classes": len(classes), "train_images": int(counts[classes].sum())}
                for classes in self.subsets
            ],
            "preset": {"name": self.options.preset, **vars(self.preset)},
        }
        if self.selects_experts:
            report["validation"] = self.validation
            report["expert_weight"] = self.expert_weight.tolist()
            if self.validation == "test":
                report["test_set_leak"] = True
        return report


def _config_error(message: str) -> Exception:
    from ltkernels.train.config import ConfigError

    return ConfigError(message)
