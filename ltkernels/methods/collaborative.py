"""What ECL and NCL share: experts of equal rank, two views, momentum contrast, ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ltkernels.data.transforms import Augmentation, mixup
from ltkernels.data.views import View, make_view
from ltkernels.nn import MomentumContrast, MultiExpert

from .experts_report import experts_report
from .method import Batch, Context, Method, TestSet

if TYPE_CHECKING:
    from ltkernels.train.config import Config

__all__ = ["Collaborative"]


class Collaborative(Method):
    """Experts that are trained together and predict together.

    The first view of an image is classified and queries; the momentum encoders make the key of the
    second view. ``model`` is what inference needs: encoders and classification heads. Everything
    else is dropped.
    """

    reads = frozenset({"experts", "model.shared_stem", "contrast", "views", "flip_test"})
    defaults: ClassVar[Mapping[str, Any]] = {"optimizer": {"nesterov": True}}
    needs_images = True

    model: MultiExpert
    contrast: MomentumContrast | None

    def __init__(self, context: Context, *, contrast: bool) -> None:
        nn.Module.__init__(self)
        self.context = context
        config = context.config
        self.model = context.build_model(
            experts=config.experts, shared_stem=config.model.shared_stem
        )
        self.contrast = None
        if contrast:
            c = config.contrast
            self.contrast = MomentumContrast(
                self.model,
                c.width,
                hidden=c.hidden,
                queue=c.queue,
                momentum=c.momentum,
                buffers=c.buffers,
                statistics=c.statistics,
            )
        self._views = _views_of(config, context)

    def prepare(
        self, inputs: Tensor, labels: Tensor, indices: Tensor, generator: torch.Generator
    ) -> Batch:
        """One view, or two with contrast; mixed alike where images are mixed."""
        config, transform = self.context.config, self.context.dataset.transform
        views = self._views if self.contrast is not None else self._views[:1]
        if config.data.augment:
            augmented = torch.cat([view(inputs, generator) for view in views], dim=1)
        else:
            augmented = torch.cat([transform.normalize(inputs)] * len(views), dim=1)
        labels_b, lam = None, 1.0
        if config.mixup_alpha:
            # As more channels of one image, the two views of a pair are mixed with one weight.
            augmented, labels, labels_b, lam = mixup(
                augmented, labels, config.mixup_alpha, generator
            )
        first, *second = augmented.chunk(len(views), dim=1)
        return Batch(first, labels, indices, labels_b, lam, *second)

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, ...]]:
        """``cls`` logits and ``features`` of every expert; with contrast ``query`` and ``key``."""
        logits, features = self.model.logits_and_features(batch.inputs)
        outputs = {"cls": logits, "features": features}
        if self.contrast is not None:
            assert batch.second is not None
            outputs["query"] = self.contrast.query(features)
            outputs["key"] = self.contrast.key(batch.second)
        return outputs

    def on_step_end(self, outputs: dict[str, tuple[Tensor, ...]], batch: Batch) -> None:
        """The momentum encoders follow; the keys of the whole batch enter the queue."""
        if self.contrast is not None:
            self.contrast.update(self.model, outputs["key"])

    def predict(self, inputs: Tensor) -> Tensor:
        """The mean of the experts' logits, without the prior."""
        return torch.stack(self.predict_experts(inputs)).mean(dim=0)

    def predict_experts(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Each expert's logits ``[N, C]``; with ``flip_test`` the mean with the mirror image's."""
        logits: tuple[Tensor, ...] = self.model(inputs)
        if self.context.config.flip_test:
            mirrored = self.model(inputs.flip(3))
            logits = tuple((a + b) / 2 for a, b in zip(logits, mirrored, strict=True))
        return logits

    def report(self, test: TestSet) -> dict[str, Any]:
        """What the experts do alone and together, and how far their features are apart."""
        return experts_report(
            self.model, self.predict_experts, test, flip=self.context.config.flip_test
        )


def _views_of(config: Config, context: Context) -> tuple[View, ...]:
    views, base = config.views, context.dataset.transform
    if not isinstance(base, Augmentation):
        raise ValueError(f"`{config.method}`: expected images, {context.dataset.name} has none")
    return tuple(
        make_view(name, base, cutout=views.cutout, crop=views.crop)
        for name in (views.first, views.second)
    )
