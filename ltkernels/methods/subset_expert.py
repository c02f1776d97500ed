"""An expert of the classes of one subset, trained on their images alone.

Xiang et al., "Learning from multiple experts", ECCV 2020, sec. 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltkernels import functional as F
from ltkernels.data.sampling import epoch_indices
from ltkernels.data.subsets import class_subsets, subset_names
from ltkernels.metrics import class_accuracy

from .method import Batch, Context, Method, Stage, TestSet

if TYPE_CHECKING:
    from ltkernels.data import LongTailedDataset
    from ltkernels.train.config import Config
    from ltkernels.train.tables import SubsetsConfig

__all__ = ["SubsetExpert", "subsets_of"]


def subsets_of(config: SubsetsConfig, class_counts: Tensor) -> tuple[Tensor, ...]:
    """The subsets that a configuration means, none of them empty.

    Args:
        config: thresholds and rule.
        class_counts: int64 ``[C]``.

    Returns:
        The classes of each subset, from most images to fewest.

    Raises:
        ConfigError: a subset has no class.
    """
    from ltkernels.train.config import ConfigError

    subsets = class_subsets(class_counts.cpu(), config.thresholds, config.rule)
    for name, classes in zip(subset_names(config.thresholds, config.rule), subsets, strict=True):
        if len(classes) == 0:
            low, high = int(class_counts.min()), int(class_counts.max())
            raise ConfigError(
                f"`subsets.thresholds`: expected classes in every subset, got {config.thresholds} "
                f"with none of {name} images; the classes have {low} to {high}"
            )
    return subsets


class SubsetExpert(Method):
    """Minimise the cross-entropy of the subset's classes on the subset's images.

    The expert has one logit a class of its subset, in rising order of the classes, and knows of no
    other. Asked for all classes (:meth:`predict`), it gives the others no probability at all.
    """

    name = "subset_expert"
    summary = "an expert of one subset of the classes (subsets.index)"
    reads = frozenset({"subsets"})

    classes: Tensor
    """The subset's classes, int64 ``[S]``."""
    rank: Tensor
    """Position of each class in ``classes``, int64 ``[C]``; -1 outside the subset."""

    def __init__(self, context: Context) -> None:
        nn.Module.__init__(self)
        self.context = context
        config = context.config.subsets
        classes = subsets_of(config, context.class_counts)[config.index]
        rank = torch.full((len(context.class_counts),), -1)
        rank[classes] = torch.arange(len(classes))
        # Both follow from the data set, so they are no part of a checkpoint.
        self.register_buffer("classes", classes, persistent=False)
        self.register_buffer("rank", rank, persistent=False)
        self.model = self.build_network(len(classes))

    @classmethod
    def preface(cls, config: Config, dataset: LongTailedDataset) -> str:
        """Which classes the expert is of."""
        subsets, counts = config.subsets, dataset.class_counts
        classes = subsets_of(subsets, counts)[subsets.index]
        name = subset_names(subsets.thresholds, subsets.rule)[subsets.index]
        images = int(counts[classes].sum())
        return f"expert of the {len(classes)} classes with {name} images, {images:,} in all"

    def build_network(self, outputs: int) -> nn.Module:
        """The network that the configuration names, with some number of logits."""
        network: nn.Module = self.context.build_model(num_classes=outputs)
        return network

    def positions(self) -> Tensor:
        """Positions of the subset's images in the training set, int64 ``[n]``."""
        labels = self.context.dataset.train_labels
        return (self.rank.cpu()[labels.cpu()] >= 0).nonzero().flatten()

    def order(self, stage: Stage, epoch: int) -> Tensor:
        """A permutation of the subset's images."""
        own = self.positions()
        return own[epoch_indices(len(own), self.context.config.seed, epoch)]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy over the subset, the mean over the batch."""
        return batch.mixed(lambda y: F.adjusted_cross_entropy(outputs, self.rank[y]))

    def subset_logits(self, images: Tensor) -> Tensor:
        """Logits ``[N, S]`` of the subset's classes, for normalised images."""
        logits: Tensor = self.model(images)
        return logits

    def predict(self, images: Tensor) -> Tensor:
        """Logits ``[N, C]``, -inf outside the subset."""
        logits = self.subset_logits(images)
        everything = logits.new_full((logits.shape[0], len(self.rank)), -torch.inf)
        return everything.index_copy(1, self.classes, logits)

    def report(self, test: TestSet) -> dict[str, Any]:
        """What the expert is of, and its accuracy on the test images of its own classes."""
        config = self.context.config.subsets
        predicted = test.run(self.predict).argmax(1)
        accuracy = class_accuracy(predicted, test.labels, len(self.rank))[self.classes.cpu()]
        return {
            "subset": {
                "images_a_class": subset_names(config.thresholds, config.rule)[config.index],
                "classes": len(self.classes),
                "train_images": len(self.positions()),
                "accuracy": 100 * float(accuracy.nanmean()),
            }
        }
