"""Classifier re-training on frozen features.

Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ltkernels import functional as F
from ltkernels.data.sampling import balanced_epoch_indices
from ltkernels.nn import MultiExpert, RoutedExperts

from .method import Batch, Context, Method, Stage

if TYPE_CHECKING:
    from ltkernels.train.config import Config

__all__ = ["CRT"]


class CRT(Method):
    """The features of a trained network with new classifiers, from class-balanced batches.

    1. A run gives the network (``start``): plain cross-entropy in the paper, RIDE for the
       combination in RIDE's Fig. 3.
    2. Its classifiers are drawn anew and trained with plain cross-entropy on class-balanced
       batches; everything else stands still, batch-norm statistics included.
    """

    name = "crt"
    summary = "classifier re-training on the frozen features of a run (start=RUN)"
    defaults: ClassVar[Mapping[str, Any]] = {"schedule": {"kind": "cosine", "warmup": 0.0}}
    reads = frozenset({"start"})

    def __init__(self, context: Context) -> None:
        nn.Module.__init__(self)
        self.context = context
        experts = context.config.start_experts
        self.model = context.build_model(
            experts=experts or None, shared_stem=context.config.model.shared_stem
        )
        if "start" in context.teachers:
            source = context.teachers["start"].model
            trained = source.network if isinstance(source, RoutedExperts) else source
            own = self.model.state_dict()
            new = {name: value for name, value in own.items() if _is_head(name)}
            self.model.load_state_dict({**trained.state_dict(), **new})

    @classmethod
    def complete(cls, config: Config) -> Config:
        """The network's keys are those of the run to start from."""
        from ltkernels.methods import METHODS, RIDE
        from ltkernels.methods.collaborative import Collaborative
        from ltkernels.train import ConfigError, load_config

        if not config.start:
            raise ConfigError("`start`: expected the folder of a trained run, got ''")
        source = load_config(Path(config.start))
        model, experts = source.model, source.start_experts
        if issubclass(METHODS[source.method], RIDE):
            model, experts = replace(model, shared_stem=True), source.experts
        elif issubclass(METHODS[source.method], Collaborative):
            experts = source.experts
        return replace(config, model=model, start_experts=experts)

    @classmethod
    def prerequisites(cls, config: Config) -> dict[str, Config]:
        """The run whose features are kept."""
        return {"start": config}

    def on_stage_start(self, stage: Stage) -> None:
        """Only the classifiers learn."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(_is_head(name))

    def train(self, mode: bool = True) -> CRT:
        """Frozen features keep their batch-norm statistics."""
        super().train(mode)
        self.model.eval()
        return self

    def order(self, stage: Stage, epoch: int) -> Tensor:
        """A class-balanced epoch."""
        labels = self.context.dataset.train_labels
        return balanced_epoch_indices(labels, self.context.config.seed, epoch)

    def loss(self, outputs: Tensor | tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Plain cross-entropy; the sum over the experts where there are several."""
        each = outputs if isinstance(outputs, tuple) else (outputs,)
        return batch.mixed(
            lambda y: torch.stack([F.adjusted_cross_entropy(z, y) for z in each]).sum()
        )

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits; the experts' mean where there are several."""
        if isinstance(self.model, MultiExpert):
            return self.model.predict(inputs)
        return super().predict(inputs)


def _is_head(name: str) -> bool:
    """Whether a parameter belongs to a classifier."""
    return not {"linear", "linears", "fc"}.isdisjoint(name.split("."))
