"""What every method is made of: the base class that the training loop drives.

A method says what is trained (``model``), what a batch goes through (``prepare``), what is
computed for each image (``forward``), the loss of those outputs (``loss``) and how it predicts
(``predict``). The loop in ``ltkernels.train`` does the rest: order of the images, optimiser,
learning rate, evaluation, checkpoints, several processes.

``forward`` and ``loss`` are apart because of data-parallel training: ``forward`` sees the images of
its own process, its outputs are gathered, and ``loss`` sees the whole batch. A loss that is not a
mean over images (weighted means, pairs of images, queues) is then the same on any number of
processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ltkernels.data.sampling import balanced_epoch_indices, epoch_indices
from ltkernels.data.transforms import mixup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch

    from ltkernels.data import Inputs, LongTailedDataset
    from ltkernels.train.config import Config
    from ltkernels.train.tables import ScheduleConfig

__all__ = ["Batch", "Context", "Method", "Stage", "TestSet"]


@dataclass(frozen=True)
class Batch:
    """One step's images and labels.

    Args:
        inputs: what the network takes: of images float32 ``[N, channels, H, W]``, augmented and
            normalised; of texts int32 ``[N, L]``.
        labels: int64 ``[N]``.
        indices: int64 ``[N]``, positions of the inputs in the training set.
        labels_b: int64 ``[N]``, labels of the images mixed in; None without mixup.
        lam: weight of ``labels`` against ``labels_b``.
        second: another view of the same images; None where a method wants one view.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    labels_b: Tensor | None = None
    lam: float = 1.0
    second: Tensor | None = None

    def mixed(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """``lam * loss(labels) + (1 - lam) * loss(labels_b)``; ``loss(labels)`` without mixup."""
        if self.labels_b is None:
            return loss(self.labels)
        return self.lam * loss(self.labels) + (1 - self.lam) * loss(self.labels_b)


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own optimiser and schedule.

    Args:
        name: name in logs and progress.
        epochs: epochs of this stage, at least 1.
        batch_size: images a step, over all processes.
        lr: base learning rate.
        weight_decay: L2 penalty.
        schedule: course of the learning rate over the stage.
    """

    name: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: ScheduleConfig


@dataclass(frozen=True)
class Context:
    """What a method is built from.

    Args:
        config: the resolved configuration of the run.
        dataset: the training data; held-out validation images are already taken out.
        class_counts: int64 ``[C]``, training images of each class.
        device: where the run trains.
        build_model: makes the network that the configuration names, for this data set; with
            ``experts=K``, the multi-expert one.
        teachers: the trained methods of the runs that :meth:`Method.prerequisites` asked for, by
            name, frozen and in evaluation mode.
        validation: inputs and labels int64 ``[V]`` that are held out of ``dataset``; None where
            none are.
    """

    config: Config
    dataset: LongTailedDataset
    class_counts: Tensor
    device: torch.device
    build_model: Callable[..., Any]
    teachers: Mapping[str, Method]
    validation: tuple[Inputs, Tensor] | None = None


@dataclass(frozen=True)
class TestSet:
    """The test images as a method's report sees them.

    Args:
        labels: int64 ``[M]``.
        class_counts: int64 ``[C]``, training images of each class.
        rule: which classes are many, medium and few.
        input_shape: of one input, ``(channels, H, W)``.
        run: applies a function of normalised images to all test images, batch by batch, without
            gradients, in evaluation mode; its rows ``[M, ...]`` come back on the CPU.
    """

    __test__ = False  # pytest takes classes of such names for tests

    labels: Tensor
    class_counts: Tensor
    rule: str
    input_shape: tuple[int, ...]
    run: Callable[[Callable[[Tensor], Tensor]], Tensor]


class Method(nn.Module, ABC):
    """A training method; subclasses are read beside their paper.

    Everything that changes during training is a parameter or a buffer of this module, so that its
    ``state_dict`` is a complete checkpoint. Parameters that require a gradient when a stage begins
    are what the stage trains.
    """

    name: ClassVar[str]
    """What the command line calls it."""
    summary: ClassVar[str]
    """One line for the list of methods."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Configuration that differs from the general defaults, weaker than any recipe."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Method-specific configuration keys, or whole tables, that it reads: ``loss.alpha``."""
    needs_images: ClassVar[bool] = False
    """Whether it does something that only images take: views, a shared convolutional stem."""
    keeps_prior: ClassVar[bool] = False
    """Whether its logits still carry the training prior, so that adjusting them afterwards pays."""

    model: nn.Module
    """The network that is trained, saved as ``model.safetensors`` and counted."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.model = context.build_model()

    @classmethod
    def logits_keep_prior(cls, config: Config) -> bool:
        """Whether such a run's logits carry the prior: the method keeps it, the epochs have it."""
        return cls.keeps_prior and config.data.sampling == "instance"

    @classmethod
    def complete(cls, config: Config) -> Config:
        """The configuration with what follows from other runs; called before the run begins."""
        return config

    @classmethod
    def prerequisites(cls, config: Config) -> dict[str, Config]:
        """Runs that must exist before this one, by name: each is trained in ``OUT/<name>``.

        Args:
            config: the resolved configuration of this run.

        Returns:
            Name -> configuration; none by default.
        """
        return {}

    @classmethod
    def preface(cls, config: Config, dataset: LongTailedDataset) -> str:
        """What is said before anything is trained; nothing by default."""
        return ""

    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run, in order; by default one that follows the configuration."""
        c = self.context.config
        return (Stage("train", c.epochs, c.batch_size, c.lr, c.weight_decay, c.schedule),)

    def order(self, stage: Stage, epoch: int) -> Tensor:
        """Training images of an epoch in their order: a permutation, unless classes are balanced.

        Args:
            stage: the running stage.
            epoch: 0-based epoch of the stage.

        Returns:
            int64 ``[n]``, positions in the training set; a function of the arguments and the seed.
        """
        labels, seed = self.context.dataset.train_labels, self.context.config.seed
        if self.context.config.data.sampling == "class":
            return balanced_epoch_indices(labels, seed, epoch)
        return epoch_indices(len(labels), seed, epoch)

    def prepare(
        self, inputs: Tensor, labels: Tensor, indices: Tensor, generator: torch.Generator
    ) -> Batch:
        """Augment (and mix) the inputs of a step.

        Args:
            inputs: as the data set has them; of images uint8 ``[N, channels, H, W]``.
            labels: int64 ``[N]``.
            indices: int64 ``[N]``, positions in the training set.
            generator: the only source of randomness here.

        Returns:
            The batch that :meth:`forward` and :meth:`loss` see.
        """
        config, transform = self.context.config, self.context.dataset.transform
        augmented = (
            transform(inputs, generator) if config.data.augment else transform.normalize(inputs)
        )
        if not config.mixup_alpha:
            return Batch(augmented, labels, indices)
        augmented, labels, labels_b, lam = mixup(augmented, labels, config.mixup_alpha, generator)
        return Batch(augmented, labels, indices, labels_b, lam)

    def forward(self, batch: Batch) -> Any:
        """What is computed image by image; here the logits.

        Args:
            batch: the images of this process.

        Returns:
            A tensor whose first dimension is the images, or a tuple, list or dict of such.
        """
        return self.model(batch.inputs)

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The scalar that is minimised.

        Args:
            outputs: what :meth:`forward` returned, for the images of all processes.
            batch: labels and indices of all processes' inputs; ``inputs`` of this process.

        Returns:
            float32 scalar. Parameters may be used in :meth:`forward` only: there each process sees
            its own images, here all see the same.
        """

    def on_step_end(self, outputs: Any, batch: Batch) -> None:
        """Called after the optimiser's step, without gradients: queues and averages move here.

        Args:
            outputs: what :meth:`loss` was given.
            batch: likewise.
        """

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]`` of normalised inputs, in evaluation mode."""
        logits: Tensor = self.model(inputs)
        return logits

    def report(self, test: TestSet) -> dict[str, Any]:
        """More entries of ``result.json``, made when training is done; none by default."""
        return {}

    def on_stage_start(self, stage: Stage) -> None:
        """Called before the optimiser of a stage is made: freeze or thaw parameters here."""

    def on_stage_end(self, stage: Stage) -> None:
        """Called when a stage's last step is made, before what it trained is evaluated."""

    def on_epoch_start(self, stage: Stage, epoch: int) -> None:
        """Called before each 0-based epoch, also for the epoch in which a run is resumed.

        Schedules are tied to the epoch here: every sub-module with an ``on_epoch_start`` of its own
        (the losses) is told the epoch.
        """
        for module in self._scheduled():
            module.on_epoch_start(epoch)

    def on_epoch_end(
        self, stage: Stage, epoch: int, accuracy: Mapping[str, float | None]
    ) -> Mapping[str, Any] | None:
        """Called after each 0-based epoch.

        Args:
            stage: the running stage.
            epoch: the epoch that ended.
            accuracy: ``overall``, ``many``, ``medium``, ``few`` in percent on the validation images
                (held out of training); empty where there are none or none were evaluated.

        Returns:
            More entries of the epoch's row in ``metrics.jsonl``; None for none.
        """
        return None

    def _scheduled(self) -> Iterable[Any]:
        return [m for m in self.children() if hasattr(m, "on_epoch_start")]
